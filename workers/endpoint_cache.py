"""Endpoints as this worker last loaded them: loaded again when their row says something newer, or a key has expired."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.attempts import Started
from app.endpoints import LoadedEndpoint, load_endpoints
from app.sealing import SecretKeys

#: Endpoints kept, least recently used dropped first; about 1 kB each.
KEEP = 10_000


class EndpointCache:
    """Not shared between processes; used from one event loop."""

    def __init__(self, keys: SecretKeys) -> None:
        self._keys = keys
        self._loaded: OrderedDict[UUID, LoadedEndpoint] = OrderedDict()

    async def for_attempts(self, connection: AsyncConnection, started: Iterable[Started]) -> dict[UUID, LoadedEndpoint]:
        """The endpoint of each attempt, at the version that the attempt was started with or newer.

        No key is among its keys that had expired when the attempt was started; both are times of the database's clock.

        Raises:
            HomingError: a secret cannot be opened with the keys that this process has.
        """
        answer: dict[UUID, LoadedEndpoint] = {}
        missing: set[UUID] = set()
        for attempt in started:
            known = self._loaded.get(attempt.endpoint_id)
            if known is None or known.version < attempt.endpoint_version or _key_expired(known, attempt):
                missing.add(attempt.endpoint_id)
            else:
                self._loaded.move_to_end(attempt.endpoint_id)
                answer[attempt.endpoint_id] = known
        if missing:
            fresh = await load_endpoints(connection, self._keys, list(missing))
            self._loaded.update(fresh)
            answer.update(fresh)
            while len(self._loaded) > KEEP:
                self._loaded.popitem(last=False)
        return answer


def _key_expired(endpoint: LoadedEndpoint, attempt: Started) -> bool:
    return endpoint.keys_until is not None and endpoint.keys_until <= attempt.started_at
