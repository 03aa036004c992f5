"""What retention takes away outside the weekly partitions, row by row in small batches: what is older than the kept age.

Dead letters of deliveries that are gone, because they hold payloads; events whose ids carry no time, because no partition of
theirs ever ends; idempotency keys, only when somebody asks for it. Each batch is a transaction; doing it twice does nothing twice.
`audit_events` stays: it is a chain, and nothing may be taken out of it. Replays and what was set aside stay too: they are few.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

#: Dead letters looked at in one transaction, and pages of a table, of 8 KiB mostly.
LETTERS, PAGES = 1000, 64

# Along the index by delivery, so that letters which stay are looked at once.
_LETTERS_AFTER = text(
    """
    SELECT l.id, l.delivery_id,
           l.status <> 'open' AND NOT EXISTS (SELECT FROM deliveries d WHERE d.id = l.delivery_id) AS orphan
    FROM dead_letters l
    WHERE l.delivery_id > CAST(:after AS uuid) AND l.delivery_id < homing_uuid7_floor(:cutoff)
    ORDER BY l.delivery_id LIMIT :limit
    """
)
_REMOVE_LETTERS_IF_NOT_OPEN = text(
    "DELETE FROM dead_letters WHERE id = ANY(CAST(:ids AS uuid[])) AND status <> 'open' RETURNING id"
)

_PAGES = text("SELECT pg_relation_size(to_regclass(:name)) / current_setting('block_size')::integer")

# Deliveries are made with their event or never: an old event without any will not get one.
_FORGET_EVENTS_WITHOUT_DELIVERIES = text(
    """
    DELETE FROM events_default e
    WHERE e.ctid >= CAST(:first AS tid) AND e.ctid < CAST(:last AS tid) AND e.taken_at < :cutoff
      AND NOT EXISTS (SELECT FROM deliveries d WHERE d.event_id = e.id)
    """
)

# Whoever takes events reads a key in one statement and relies on it in the next: between the two no key may go.
_LOCK_KEYS = text("LOCK TABLE event_keys IN SHARE ROW EXCLUSIVE MODE")
_FORGET_KEYS = text(
    """
    DELETE FROM event_keys k
    WHERE k.ctid >= CAST(:first AS tid) AND k.ctid < CAST(:last AS tid) AND k.created_at < :cutoff
    """
)


async def forget_letters(connection: AsyncConnection, cutoff: datetime) -> int:
    """Remove the dead letters, not open ones, whose deliveries were dropped; returns how many."""
    removed, after = 0, UUID(int=0)
    while True:
        async with connection.begin():
            seen = (
                await connection.execute(_LETTERS_AFTER, {"after": after, "cutoff": cutoff, "limit": LETTERS})
            ).all()
            if not seen:
                return removed
            orphans = [letter.id for letter in seen if letter.orphan]
            if orphans:
                removed += len((await connection.execute(_REMOVE_LETTERS_IF_NOT_OPEN, {"ids": orphans})).all())
        # One delivery's letters may be cut by the limit: the rest of them is for the next run.
        after = seen[-1].delivery_id


async def forget_events(connection: AsyncConnection, cutoff: datetime) -> int:
    """Remove old events of the default partition that have no deliveries any more; returns how many."""
    return await _walk(connection, "events_default", _FORGET_EVENTS_WITHOUT_DELIVERIES, cutoff)


async def forget_keys(connection: AsyncConnection, cutoff: datetime) -> int:
    """Remove old idempotency keys; returns how many. An event that brings one of them again is a new one."""
    return await _walk(connection, "event_keys", _FORGET_KEYS, cutoff, lock=_LOCK_KEYS)


async def _walk(
    connection: AsyncConnection, table: str, delete: TextClause, cutoff: datetime, lock: TextClause | None = None
) -> int:
    """Delete what matches, from the table's first page to what is its last one now: no index is needed."""
    async with connection.begin():
        pages: int = (await connection.execute(_PAGES, {"name": table})).scalar_one() or 0
    removed = 0
    for first in range(0, pages, PAGES):
        places = {"first": f"({first},0)", "last": f"({first + PAGES},0)", "cutoff": cutoff}
        async with connection.begin():
            if lock is not None:
                await connection.execute(lock)
            removed += (await connection.execute(delete, places)).rowcount
    return removed
