"""Weekly partitions of events, deliveries and attempts: made ahead, so that every new row finds one."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

#: How far ahead partitions are made; the poller asks every hour, so four weeks leave time for an operator to notice.
WEEKS_AHEAD = 4


async def ensure_partitions(engine: AsyncEngine) -> int:
    """Make the partitions of this week and the next four; returns how many were missing. Safe to run concurrently."""
    async with engine.begin() as connection:
        made = await connection.execute(text("SELECT homing_ensure_partitions(:weeks)"), {"weeks": WEEKS_AHEAD})
        return int(made.scalar_one())
