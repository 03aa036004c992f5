"""Endpoints as this worker last loaded them: loaded again when their row says something newer, or a key has expired."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from app.attempts import Started
from app.endpoints import LoadedEndpoint, load_endpoints
from app.errors import HomingError
from app.sealing import SecretKeys

log = structlog.get_logger(__name__)

#: Endpoints kept, least recently used dropped first; about 1 kB each.
KEEP = 10_000


class EndpointCache:
    """Not shared between processes; used from one event loop."""

    def __init__(self, keys: SecretKeys) -> None:
        self._keys = keys
        self._loaded: OrderedDict[UUID, LoadedEndpoint] = OrderedDict()

    async def for_attempts(
        self, connection: AsyncConnection, started: Iterable[Started]
    ) -> dict[UUID, LoadedEndpoint | None]:
        """The endpoint of each attempt, at the version that the attempt was started with or newer.

        No key is among its keys that had expired when the attempt was started; both are times of the database's clock.

        Returns:
            By id; None for an endpoint with a secret that this process has no key for, or with settings that cannot be
            read. Those that are gone are left out.
        """
        answer: dict[UUID, LoadedEndpoint | None] = {}
        missing: set[UUID] = set()
        for attempt in started:
            known = self._loaded.get(attempt.endpoint_id)
            if known is None or known.version < attempt.endpoint_version or _key_expired(known, attempt):
                missing.add(attempt.endpoint_id)
            else:
                self._loaded.move_to_end(attempt.endpoint_id)
                answer[attempt.endpoint_id] = known
        if missing:
            fresh, unreadable = await self._load(connection, list(missing))
            self._loaded.update(fresh)
            answer.update(fresh)
            answer.update(dict.fromkeys(unreadable))
            while len(self._loaded) > KEEP:
                self._loaded.popitem(last=False)
        return answer

    async def _load(
        self, connection: AsyncConnection, ids: list[UUID]
    ) -> tuple[dict[UUID, LoadedEndpoint], list[UUID]]:
        """Load endpoints; those that cannot be read come second, and do not hold up the others."""
        try:
            return await load_endpoints(connection, self._keys, ids), []
        except HomingError as error:
            if len(ids) == 1:
                log.error("endpoint.unreadable", endpoint_id=str(ids[0]), error=str(error))
                return {}, ids
        loaded: dict[UUID, LoadedEndpoint] = {}
        unreadable: list[UUID] = []
        for endpoint_id in ids:
            fresh, failed = await self._load(connection, [endpoint_id])
            loaded.update(fresh)
            unreadable += failed
        return loaded, unreadable


def _key_expired(endpoint: LoadedEndpoint, attempt: Started) -> bool:
    return endpoint.keys_until is not None and endpoint.keys_until <= attempt.started_at
