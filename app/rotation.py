"""Sealing every endpoint secret again with the current key, in batches, while everything runs.

Resumable and idempotent: each batch is a transaction of its own, and what the current key has sealed is left alone. A
secret that another transaction holds is skipped, and one whose sealed value has changed since it was read is not
written. Workers need not know: a sealed value names its key, and what is inside does not change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.endpoints import secret_context
from app.errors import SettingsInvalid
from app.sealing import SecretKeys, key_id_of, sealed_with

#: Secrets in one transaction.
BATCH = 500
#: What stands for the key of a value that names none.
UNREADABLE = "unreadable"

_LOCK_SEALED_OTHERWISE = text(
    """
    SELECT id, sealed FROM endpoint_secrets
    WHERE id > :after AND substring(sealed FROM 1 FOR octet_length(CAST(:head AS bytea))) <> :head
    ORDER BY id
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
    """
)

_RESEAL_IF_UNCHANGED = text(
    """
    UPDATE endpoint_secrets s SET sealed = w.fresh
    FROM unnest(CAST(:ids AS uuid[]), CAST(:old AS bytea[]), CAST(:fresh AS bytea[])) AS w (id, old, fresh)
    WHERE s.id = w.id AND s.sealed = w.old
    """
)

_BY_HEAD = text(
    """
    SELECT substring(sealed FROM 1 FOR 9) AS head, octet_length(sealed) > 9 AS whole, count(*) AS count,
           count(*) FILTER (WHERE expires_at IS NULL OR expires_at > now()) AS signing
    FROM endpoint_secrets GROUP BY 1, 2 ORDER BY 3 DESC, 1
    """
)


@dataclass(slots=True)
class Resealing:
    """How far it has come, or what it came to."""

    total: int
    """Secrets there are."""
    already_current: int
    """Those that the current key had sealed before."""
    resealed: int = 0
    missing_keys: Counter[str] = field(default_factory=Counter)
    """Secrets that cannot be opened because their key is not there, by key id."""
    damaged: list[UUID] = field(default_factory=list)
    """Secrets that do not open with their key, or are no sealed values."""

    @property
    def unopened(self) -> int:
        """Secrets that were left as they are because they cannot be opened."""
        return self.missing_keys.total() + len(self.damaged)

    @property
    def left(self) -> int:
        """Secrets not come to yet; at the end, those that other transactions held."""
        return max(0, self.total - self.already_current - self.resealed - self.unopened)


async def secrets_by_key(connection: AsyncConnection, keys: SecretKeys) -> list[dict[str, Any]]:
    """How many secrets each key has sealed: `key_id`, `secrets`, `signing` (not expired), `known`, `current`."""
    found: dict[str, dict[str, Any]] = {}
    for row in await connection.execute(_BY_HEAD):
        key_id = _key_id(bytes(row.head)) if row.whole else UNREADABLE
        known = key_id != UNREADABLE and keys.knows(key_id)
        entry = found.setdefault(
            key_id, {"key_id": key_id, "secrets": 0, "signing": 0, "known": known, "current": False}
        )
        entry["secrets"] += row.count
        entry["signing"] += row.signing
    # Asked for last: looking for a key may have read a changed file again.
    current = {"key_id": keys.current_key_id, "secrets": 0, "signing": 0, "known": True, "current": True}
    found[keys.current_key_id] = current | found.get(keys.current_key_id, {}) | {"current": True}
    return sorted(found.values(), key=lambda entry: not entry["current"])


async def reseal_all(engine: AsyncEngine, keys: SecretKeys, *, batch: int = BATCH) -> AsyncIterator[Resealing]:
    """Seal again, with the current key, whatever another one has sealed; yields the same object after each batch.

    Ends when a whole pass has found nothing more that it can do. May be stopped between two batches at any time; the
    next run goes on.
    """
    async with engine.connect() as connection:
        counts = await secrets_by_key(connection, keys)
    total = sum(entry["secrets"] for entry in counts)
    progress = Resealing(total=total, already_current=counts[0]["secrets"])
    done = -1
    while done < progress.resealed:
        done = progress.resealed
        progress.missing_keys.clear()
        progress.damaged.clear()
        after: UUID | None = UUID(int=0)
        while after is not None:
            async with engine.begin() as connection:
                after = await _reseal_batch(connection, keys, progress, after, batch)
            yield progress


async def _reseal_batch(
    connection: AsyncConnection, keys: SecretKeys, progress: Resealing, after: UUID, batch: int
) -> UUID | None:
    """Seal the secrets that follow `after` in order of their ids; the last one's id, None when there were none."""
    wanted = {"after": after, "head": sealed_with(keys.current_key_id), "limit": batch}
    rows = (await connection.execute(_LOCK_SEALED_OTHERWISE, wanted)).all()
    ids: list[UUID] = []
    old: list[bytes] = []
    fresh: list[bytes] = []
    for row in rows:
        sealed = bytes(row.sealed)
        context = secret_context(row.id)
        try:
            plain = keys.open(sealed, context)
        except SettingsInvalid:
            key_id = _key_id(sealed)
            if key_id == UNREADABLE or keys.knows(key_id):
                progress.damaged.append(row.id)
            else:
                progress.missing_keys[key_id] += 1
            continue
        ids.append(row.id)
        old.append(sealed)
        fresh.append(keys.seal(plain, context))
    if ids:
        written = await connection.execute(_RESEAL_IF_UNCHANGED, {"ids": ids, "old": old, "fresh": fresh})
        progress.resealed += written.rowcount
    return rows[-1].id if rows else None


def _key_id(sealed: bytes) -> str:
    try:
        return key_id_of(sealed.ljust(64, b"\0"))  # its beginning says which key, and all that is asked for here
    except SettingsInvalid:
        return UNREADABLE
