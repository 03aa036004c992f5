"""The story: transactions, a crash in the middle, an endpoint that is down and comes back, and the reckoning."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from time import monotonic

from app.db import make_engine
from app.errors import HomingError
from app.replays import request_replay
from workers.demo.destinations import ACTOR, TENANT, register
from workers.demo.ledger import Ledger, compare, read_facts, read_received
from workers.demo.producer import CONNECTIONS, Tally, make_orders_table, produce
from workers.demo.progress import Progress
from workers.demo.stage import LEASE_S, Stage
from workers.demo.watch import count, held_by, open_dead_letters

LOOK_EVERY_S = 0.2
#: Requests at the slow endpoint last 0.3 s: often enough to meet a worker that has some under way.
PEEK_EVERY_S = 0.02
#: When the demo gives up: this long, and longer for more transactions, at a pace that any machine keeps.
LIMIT_S = 120.0
TRANSACTIONS_PER_S_MIN = 20


class TimeIsUp(HomingError):
    """The time limit passed; the message says what was still open."""


class Scenario:
    """One run.

    Args:
        stage: where it plays, entered.
        transactions: how many business transactions to run.
        began: monotonic seconds; time is counted from here.
    """

    def __init__(self, stage: Stage, progress: Progress, transactions: int, *, began: float) -> None:
        self._stage = stage
        self._say = progress.say
        self._progress = progress
        self._transactions = transactions
        self._limit_s = LIMIT_S + transactions / TRANSACTIONS_PER_S_MIN
        self._began = began
        self._tally = Tally()
        self._engine = make_engine(stage.database_url, name="demo", pool_size=CONNECTIONS + 2)

    async def play(self) -> tuple[Ledger, str]:
        """Play it all.

        Returns:
            The comparison; and what was still open when the time limit passed, empty when it did not.

        Raises:
            HomingError: a process died, with its last words.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._engine.dispose)
            still_open = ""
            try:
                await self._act()
            except TimeIsUp as error:
                still_open = str(error)
            return await self._reckon(), still_open

    async def _act(self) -> None:
        stage, say = self._stage, self._say
        await register(self._engine, stage.keys, stage.destinations, stage.receiver.port)
        await make_orders_table(self._engine)
        say("Four endpoints, served by a process that verifies every signature itself:")
        for d in stage.destinations:
            say(f"  {d.name:8} gets {d.event_types[0]:16} {d.about}")
        stage.start("poller", "worker-1", "worker-2")
        owner = await self._owner_of("worker-1")
        await self._owner_of("worker-2")
        say(
            f"One poller and two workers run. {self._transactions} transactions begin: each writes an order and its event "
            "together; one in ten is rolled back, one in fifty is sent twice."
        )
        producing = asyncio.create_task(produce(self._engine, self._transactions, self._tally))
        try:
            await self._kill_in_the_middle(owner, producing)
            await self._until(lambda: _true(producing.done()))
            await producing
        finally:
            producing.cancel()
            await asyncio.gather(producing, return_exceptions=True)
        say(f"All transactions have ended; {self._tally.rolled_back} were rolled back and must leave no trace.")
        await self._until(self._settled)
        await self._bring_back_the_dead()

    async def _kill_in_the_middle(self, owner: str, producing: asyncio.Task[None]) -> None:
        quarter = self._transactions // 4

        async def in_the_middle() -> bool:
            held = await held_by(self._engine, owner)
            return (held > 0 and self._tally.transactions >= quarter) or (producing.done() and await self._settled())

        await self._until(in_the_middle, every_s=PEEK_EVERY_S)
        self._stage.kill("worker-1")
        held = await held_by(self._engine, owner)
        self._stage.start("worker-3")
        self._say(
            f"worker-1 was killed (SIGKILL) with {held} deliveries under way, and worker-3 takes its place. Whether their "
            "requests arrived nobody knows, so they are sent again when their leases end: after "
            f"{LEASE_S:g} s here, 20 s by default."
        )

    async def _bring_back_the_dead(self) -> None:
        letters = await open_dead_letters(self._engine)
        if not letters:
            return
        self._say(
            f"Everything is delivered but what went to the dead endpoint: its attempts ran out, and {len(letters)} dead "
            "letters wait. Now the endpoint is repaired, and each is replayed by its request id."
        )
        self._stage.receiver.repair("dead")
        for request_id in letters:
            async with self._engine.begin() as connection:
                await request_replay(
                    connection,
                    tenant_id=TENANT,
                    request_id=request_id,
                    reason="the endpoint was repaired",
                    actor=ACTOR,
                )
        await self._until(self._settled)

    async def _reckon(self) -> Ledger:
        """Stop everything that writes, then compare: nothing can change under the judge's eyes."""
        self._say("Stopping the processes, and comparing what was committed with what the receiver wrote down.")
        await asyncio.to_thread(self._stage.stop_processes)
        await asyncio.to_thread(self._stage.receiver.stop)
        facts = await read_facts(self._engine)
        return compare(
            facts,
            read_received(self._stage.receiver.received),
            transactions=self._tally.transactions,
            rolled_back=self._tally.rolled_back,
            seconds=monotonic() - self._began,
        )

    async def _settled(self) -> bool:
        counts = await count(self._engine)
        self._progress.show(counts)
        return counts.settled

    async def _owner_of(self, name: str) -> str:
        """The name that a worker's leases carry, from its log; also a sign that it is ready."""
        log = self._stage.log_of(name)
        found = ""

        async def started() -> bool:
            nonlocal found
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else ():
                if '"worker.started"' in line:
                    found = json.loads(line)["name"]
            return bool(found)

        await self._until(started)
        return found

    async def _until(self, happened: Callable[[], Awaitable[bool]], *, every_s: float = LOOK_EVERY_S) -> None:
        """Wait for a condition, showing progress.

        Raises:
            ChildDied: a process has ended.
            TimeIsUp: the time limit passed.
        """
        show_at = 0.0
        while not await happened():
            self._stage.check()
            if monotonic() >= show_at:
                counts = await count(self._engine)
                self._progress.show(counts)
                show_at = monotonic() + LOOK_EVERY_S
                if monotonic() - self._began > self._limit_s:
                    raise TimeIsUp(
                        f"after {self._limit_s:.0f} s these were still open: {counts.what_is_open}; "
                        f"{self._tally.transactions} of {self._transactions} transactions had ended"
                    )
            await asyncio.sleep(every_s)


async def _true(value: bool) -> bool:
    return value
