"""What retention takes away outside the weekly partitions, row by row in small batches: what is older than the kept age.

Dead letters of deliveries that are gone, because they hold payloads; events whose ids carry no time, because no partition of
theirs ever ends; idempotency keys, only when somebody asks for it. Each batch is a transaction; doing it twice does nothing twice.
`audit_events` stays: it is a chain, and nothing may be taken out of it. Replays and what was set aside stay too: they are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.short_locks import Held, under_locks

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

_FORGET_KEYS = text(
    """
    DELETE FROM event_keys k
    WHERE k.ctid >= CAST(:first AS tid) AND k.ctid < CAST(:last AS tid) AND k.created_at < :cutoff
    """
)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was removed, and why not all of it."""

    count: int
    held: str = ""
    """Who kept the table locked; empty: nobody, and all is done."""


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
    removed = 0
    for places in await _batches(connection, "events_default"):
        async with connection.begin():
            removed += await _forget(connection, _FORGET_EVENTS_WITHOUT_DELIVERIES, places, cutoff)
    return removed


async def forget_keys(connection: AsyncConnection, cutoff: datetime, *, patience_s: float) -> Forgotten:
    """Remove old idempotency keys. An event that brings one of them again is a new one.

    Whoever takes events reads a key in one statement and relies on it in the next: between the two no key may go, so each
    batch locks writers out. Where the lock is not to be had within `patience_s`, the rest stays.
    """
    removed = 0
    for places in await _batches(connection, "event_keys"):
        forget = partial(_forget, delete=_FORGET_KEYS, places=places, cutoff=cutoff)
        try:
            removed += await under_locks(
                connection, ["event_keys"], "SHARE ROW EXCLUSIVE", forget, patience_s=patience_s
            )
        except Held as held:
            return Forgotten(removed, str(held))
    return Forgotten(removed)


async def _batches(connection: AsyncConnection, table: str) -> Iterator[dict[str, str]]:
    """Batches of places, from the table's first page to what is its last one now: no index is needed."""
    async with connection.begin():
        pages: int = (await connection.execute(_PAGES, {"name": table})).scalar_one() or 0
    return ({"first": f"({first},0)", "last": f"({first + PAGES},0)"} for first in range(0, pages, PAGES))


async def _forget(connection: AsyncConnection, delete: TextClause, places: dict[str, str], cutoff: datetime) -> int:
    return (await connection.execute(delete, places | {"cutoff": cutoff})).rowcount
