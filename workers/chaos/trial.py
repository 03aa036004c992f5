"""One scenario under way: what it may use to make load and faults, and where it notes what it finds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any

import psycopg
import redis
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import make_unpooled_engine
from workers.chaos.fleet import Child, Fleet
from workers.chaos.ledger import Endpoint, Mark, read
from workers.chaos.load import TENANTS, Destination, Producer, add, choices, commit_at_once, task
from workers.chaos.receiver_process import ReceiverProcess
from workers.chaos.scenario import Scenario
from workers.chaos.stage import Stage

_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8 AS now"
_HELD = "SELECT id::text FROM deliveries WHERE state = 'delivering' AND lease_owner = %(owner)s"
_PUBLISHED = (
    "SELECT id::text FROM deliveries WHERE lease_owner IS NOT NULL AND due_at < 'infinity' "
    "AND state IN ('pending', 'retry_scheduled', 'replayed', 'failed')"
)
_UNDER_WAY = (
    "SELECT id::text FROM deliveries WHERE lease_owner IS NOT NULL AND due_at < 'infinity' "
    "AND state NOT IN ('delivered', 'dead_lettered')"
)
_OPEN = """
    SELECT (SELECT count(*) FROM outbox_events) AS outbox,
           (SELECT count(*) FROM deliveries WHERE state NOT IN ('delivered', 'dead_lettered')) AS deliveries
"""


class Trial:
    """Everything that a scenario's `play` uses."""

    def __init__(
        self,
        stage: Stage,
        scenario: Scenario,
        *,
        database_url: str,
        fleet: Fleet,
        receiver: ReceiverProcess,
        source: random.Random,
        full: bool,
    ) -> None:
        self.stage = stage
        self.scenario = scenario
        self.database_url = database_url
        self.redis_url = stage.redis_url
        self.fleet = fleet
        self.receiver = receiver
        self.random = source
        self.full = full
        self.engine: AsyncEngine = make_unpooled_engine(database_url, name="chaos")
        self.destinations: list[Destination] = []
        self.ids: dict[str, str] = {}
        self.producers: list[Producer] = []
        self.faults = 0
        self.allowed_duplicates = 0
        self.marks: list[Mark] = []
        self.audit: dict[str, int] = {}
        self.may_miss: set[str] = set()
        self.problems: list[str] = []
        self.figures: dict[str, Any] = {}

    # --- load --------------------------------------------------------------------------------------------------------

    def times(self, smoke: int, full: int) -> int:
        """A count, by how thorough this run is."""
        return full if self.full else smoke

    def produce(
        self,
        rate: float,
        count: int = 1 << 30,
        *,
        of: Sequence[tuple[str, str]] | None = None,
        die: str | None = None,
        rollback: float = 0.1,
    ) -> Producer:
        """Start a producer; without a count it runs until it is stopped, at the latest when `play` returns."""
        producer = Producer(
            task(
                f"p{len(self.producers)}",
                self.database_url,
                self.random,
                rate=rate,
                count=count,
                of=of or choices(self.scenario.per_tenant),
                rollback=rollback,
                die=die,
            )
        )
        self.producers.append(producer)
        return producer

    async def commit(self, tenant: str, event_type: str, count: int = 1) -> None:
        """Commit events at once."""
        await asyncio.to_thread(commit_at_once, self.database_url, tenant, event_type, count)

    async def add(self, *wanted: Destination) -> None:
        """Make endpoints of the scenario's own."""
        async with self.engine.begin() as connection:
            for destination in wanted:
                self.ids[destination.name] = await add(connection, self.stage.keys, destination, self.receiver.port)
        self.destinations += wanted

    async def add_case(self, name: str, url: str, *, events: int) -> None:
        """Make an endpoint of the first tenant's at a URL, and commit events for it one after another."""
        await self.add(Destination(name, TENANTS[0], (f"odd.{name}",), url=url))
        for _ in range(events):
            await self.commit(TENANTS[0], f"odd.{name}")
            await asyncio.sleep(0.3)

    def endpoints(self) -> list[Endpoint]:
        """The endpoints, as the judge is told of them."""
        return [
            Endpoint(self.ids[d.name], d.name, d.tenant, d.event_types, d.scheme, d.secret, d.policy.schedule_s)
            for d in self.destinations
        ]

    # --- looking -----------------------------------------------------------------------------------------------------

    async def rows(self, statement: str, **parameters: Any) -> list[Any]:
        """Rows of one statement; tried again for some seconds while PostgreSQL is away."""
        deadline = monotonic() + 15
        while True:
            try:
                return await asyncio.to_thread(read, self.database_url, statement, parameters or None)
            except psycopg.OperationalError:
                if monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def now(self) -> float:
        """The database's clock."""
        return float((await self.rows(_NOW))[0].now)

    async def until(self, happened: Callable[[], Awaitable[Any]], limit_s: float = 20.0) -> Any:
        """Wait for a condition; its last value, which is false when the time has passed."""
        deadline = monotonic() + limit_s
        while True:
            if (value := await happened()) or monotonic() > deadline:
                return value
            await asyncio.sleep(0.05)

    async def settled(self, limit_s: float) -> bool:
        """Wait until nothing is left to do."""

        async def nothing_open() -> bool:
            self.fleet.check()
            (left,) = await self.rows(_OPEN)
            return bool(left.outbox == 0 and left.deliveries == 0)

        return bool(await self.until(nothing_open, limit_s))

    async def delivered(self, count: int, limit_s: float = 30.0) -> bool:
        """Wait until so many deliveries are delivered."""

        async def there() -> bool:
            (row,) = await self.rows("SELECT count(*) AS n FROM deliveries WHERE state = 'delivered'")
            return bool(row.n >= count)

        return bool(await self.until(there, limit_s))

    def redis(self) -> redis.Redis:
        """A client of the scenario's Redis; a context manager."""
        return redis.Redis.from_url(self.redis_url, socket_timeout=5, socket_connect_timeout=5)

    # --- faults ------------------------------------------------------------------------------------------------------

    async def kill(self, child: Child) -> set[str]:
        """SIGKILL, and mark what it had in flight; those may be sent twice."""
        self.fleet.kill(child)
        self.faults += 1
        return await self.mark_held_by(child)

    async def mark_held_by(self, child: Child, *, may_repeat: bool = True) -> set[str]:
        """Mark the attempts that a process has under way."""
        at = await self.now()
        held = await self._mark(at, _HELD, owner=child.owner)
        if may_repeat:
            self.allowed_duplicates += len(held)
        return held

    async def mark_published(self) -> set[str]:
        """Mark what was published and not started."""
        return await self._mark(await self.now(), _PUBLISHED)

    async def mark_under_way(self, *, may_repeat: bool) -> set[str]:
        """Mark everything that is published or started."""
        under_way = await self._mark(await self.now(), _UNDER_WAY)
        if may_repeat:
            self.allowed_duplicates += len(under_way)
        return under_way

    async def _mark(self, at: float, statement: str, **parameters: Any) -> set[str]:
        ids = {row.id for row in await self.rows(statement, **parameters)}
        self.marks.append(Mark(at, frozenset(ids)))
        return ids

    async def worker(self, **settings: str) -> Child:
        """Start one more worker and wait until it is ready."""
        child = self.fleet.start("worker", {f"HOMING_{k.upper()}": v for k, v in settings.items()})
        await self.fleet.ready(child)
        return child

    # --- findings ----------------------------------------------------------------------------------------------------

    def check(self, holds: bool, otherwise: str) -> None:
        """An extra criterion of the scenario."""
        if not holds:
            self.problems.append(otherwise)
