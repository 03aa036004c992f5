"""What the demo's database says while it runs; the demo's own statements."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

_COUNT = text(
    """
    SELECT (SELECT count(*) FROM orders) AS committed,
           (SELECT count(*) FROM outbox_events) AS in_outbox,
           (SELECT count(*) FROM outbox_rejected) AS set_aside,
           (SELECT count(*) FROM replays WHERE state = 'requested') AS replays_open,
           count(*) FILTER (WHERE state = 'delivered') AS delivered,
           count(*) FILTER (WHERE state = 'retry_scheduled') AS retrying,
           count(*) FILTER (WHERE state = 'dead_lettered') AS dead_lettered,
           count(*) FILTER (WHERE state NOT IN ('delivered', 'dead_lettered', 'retry_scheduled')) AS under_way
    FROM deliveries
    """
)

_HELD = text("SELECT count(*) FROM deliveries WHERE state = 'delivering' AND lease_owner = :owner")

_OPEN_DEAD_LETTERS = text("SELECT DISTINCT request_id FROM dead_letters WHERE status = 'open' ORDER BY request_id")


@dataclass(frozen=True)
class Counts:
    """One moment, in one snapshot."""

    committed: int = 0
    in_outbox: int = 0
    set_aside: int = 0
    replays_open: int = 0
    delivered: int = 0
    retrying: int = 0
    dead_lettered: int = 0
    under_way: int = 0

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.in_outbox or self.replays_open or self.retrying or self.under_way)

    @property
    def what_is_open(self) -> str:
        """In words, for the error message."""
        return (
            f"{self.in_outbox} events in the outbox, {self.under_way} deliveries under way, {self.retrying} waiting for "
            f"their next attempt, {self.replays_open} replays not carried out, {self.set_aside} events set aside"
        )


async def count(engine: AsyncEngine) -> Counts:
    """How things stand."""
    async with engine.connect() as connection:
        return Counts(**(await connection.execute(_COUNT)).one()._mapping)


async def held_by(engine: AsyncEngine, owner: str) -> int:
    """How many attempts a worker process has under way."""
    async with engine.connect() as connection:
        return int((await connection.execute(_HELD, {"owner": owner})).scalar_one())


async def open_dead_letters(engine: AsyncEngine) -> list[str]:
    """Request ids of the dead letters that wait for a person."""
    async with engine.connect() as connection:
        return list((await connection.execute(_OPEN_DEAD_LETTERS)).scalars())
