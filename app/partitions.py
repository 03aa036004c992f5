"""Weekly partitions of events, deliveries and attempts: made ahead, so that every new row finds one, and listed.

`app.retention` drops them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

#: How far ahead partitions are made; the poller asks every hour, so four weeks leave time for an operator to notice.
WEEKS_AHEAD = 4

_LIST = text(
    """
    SELECT c.oid::regclass::text AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds,
           greatest(c.reltuples, 0)::bigint AS rows, coalesce(pg_total_relation_size(c.oid), 0) AS bytes
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent IN ('events'::regclass, 'deliveries'::regclass, 'delivery_attempts'::regclass)
    ORDER BY c.relname
    """
)

_BOUNDS = re.compile(r"FOR VALUES FROM \('([0-9a-f-]{36})'\) TO \('([0-9a-f-]{36})'\)")


@dataclass(slots=True)
class Week:
    """The partitions, one of each table, that hold the ids of one week."""

    low: UUID
    """The lowest id that belongs to it."""
    high: UUID
    """The lowest id that does not any more."""
    partitions: list[str] = field(default_factory=list)
    """Names, as SQL may repeat them."""
    rows: int = 0
    """As Postgres last counted them."""
    bytes: int = 0

    @property
    def starts(self) -> datetime:
        """Monday, 00:00 UTC."""
        return _time_of(self.low)

    @property
    def ends(self) -> datetime:
        """The next Monday."""
        return _time_of(self.high)


async def ensure_partitions(engine: AsyncEngine) -> int:
    """Make the partitions of this week and the next four; returns how many were missing. Safe to run concurrently."""
    async with engine.begin() as connection:
        made = await connection.execute(text("SELECT homing_ensure_partitions(:weeks)"), {"weeks": WEEKS_AHEAD})
        return int(made.scalar_one())


async def list_weeks(connection: AsyncConnection) -> list[Week]:
    """Every week that has a partition, oldest first; default partitions, which have no week, are left out."""
    weeks: dict[tuple[UUID, UUID], Week] = {}
    for row in await connection.execute(_LIST):
        if match := _BOUNDS.fullmatch(row.bounds):
            low, high = UUID(match[1]), UUID(match[2])
            week = weeks.setdefault((low, high), Week(low, high))
            week.partitions.append(row.name)
            week.rows += row.rows
            week.bytes += row.bytes
    return sorted(weeks.values(), key=lambda week: week.low)


def _time_of(uuid7: UUID) -> datetime:
    return datetime.fromtimestamp((uuid7.int >> 80) / 1000, UTC)
