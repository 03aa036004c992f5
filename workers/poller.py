"""The poller: the only thing that publishes. Claims what is due, takes what is new, publishes after the commit, sleeps.

Any number may run at once. A poller that dies at any point leaves nothing behind but leases, which end by themselves.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from contextlib import AsyncExitStack
from time import monotonic

import structlog
import uvloop
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from app import failpoints
from app.claims import Claimed, claim_due, for_dead_letter, release_all_published_not_started, release_if_claimed
from app.config import Settings
from app.db import committing, make_engine
from app.intake import take_from_outbox
from app.logs import configure_logging
from app.reads import Work, work_waiting
from app.replay_batches import claim_requested
from workers.chores import Chores
from workers.collection import collect_less_often
from workers.exposition import serve_metrics
from workers.metrics import PollerMetrics
from workers.publisher import Publisher
from workers.wake import FIRST_DOZE_S, Sleeper

log = structlog.get_logger(__name__)

#: Replays published in one cycle, at most.
REPLAYS_MAX = 50
#: Rows in one cycle from which on a poller is busy, and disarms: a NOTIFY makes commits wait for each other.
BUSY = 16
#: Seconds between two cycles with work below which it comes often: the poller disarms, and gathers before it takes more.
OFTEN_S = 0.015
GATHER_S = 0.005
#: Seconds a poller waits after Redis refused, at first and at most; doubles in between.
REDIS_PAUSE_S = (0.2, 2.0)
#: A cycle older than this means that the poller is stuck.
STALLED_AFTER_S = 60.0


class Poller:
    """One poller; `run` until `stop` is called.

    Args:
        settings: batch sizes, lease, slow poll.
        database_url: where the rows are.
        redis_url: where the queues are.
    """

    def __init__(self, settings: Settings, database_url: str, redis_url: str) -> None:
        self.metrics = PollerMetrics()
        self.name = f"poller@{socket.gethostname()}:{os.getpid()}"
        self._settings = settings
        self._engine = make_engine(
            database_url, name="poller", pool_size=min(2, settings.database_pool_size), planned_once=True
        )
        self._looking = committing(self._engine)
        self._publisher = Publisher(redis_url, chunk_max=settings.chunk_max)
        self._sleeper = Sleeper(database_url)
        self._stopping = asyncio.Event()
        self._last_cycle = monotonic()
        self._next_due_s: float | None = None
        self._redis_pause_s = 0.0

    def stop(self) -> None:
        """End after the cycle that is under way; what it claimed is published or given back first."""
        self._stopping.set()

    @property
    def healthy(self) -> bool:
        """Whether a cycle has ended recently."""
        return monotonic() - self._last_cycle < STALLED_AFTER_S

    async def run(self) -> None:
        """Cycle until stopped; an error of Postgres or Redis is logged, counted and tried again."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._engine.dispose)
            stack.push_async_callback(self._publisher.close)
            stack.push_async_callback(self._sleeper.close)
            await stack.enter_async_context(
                serve_metrics(
                    self.metrics.registry,
                    self._settings.metrics_port,
                    lambda: self.healthy,
                    host=self._settings.metrics_host,
                )
            )
            chores = asyncio.create_task(Chores(self._engine, self.metrics).run(), name="chores")
            stack.callback(chores.cancel)
            log.info("poller.started", name=self.name)
            collect_less_often()
            await self._cycle_until_stopped()
        log.info("poller.stopped")

    async def _cycle_until_stopped(self) -> None:
        doze_s = FIRST_DOZE_S
        woken, worked_at = False, 0.0
        while not self._stopping.is_set():
            done = await self._cycle_safely(woken)
            looked, woken = not woken, False
            often = bool(done) and monotonic() - worked_at < OFTEN_S
            if done is None or done >= BUSY or often:
                await self._sleeper.disarm()
            if done:
                worked_at = monotonic()
                if often and done < BUSY:
                    # Commits come one by one and fast: a little later there are several to take at once.
                    await self._pause(GATHER_S)
            if done is None:
                await self._pause(self._redis_pause_s)
            elif done or not looked:
                doze_s = FIRST_DOZE_S
            elif self._sleeper.armed:
                woken = await self._sleep()
            elif await self._sleeper.arm():
                # Once more round: what was committed before the lock was taken did not notify.
                doze_s = FIRST_DOZE_S
            else:
                longest = min(0.1, self._settings.slow_poll_s) if self._sleeper.on_duty else self._settings.slow_poll_s
                await self._pause(min(doze_s, longest))
                doze_s = min(doze_s * 2, longest)

    async def _sleep(self) -> bool:
        """Until a commit notifies (True), the next delivery is due, the slow poll comes round, or somebody stops us."""
        timeout = self._settings.slow_poll_s
        if self._next_due_s is not None:
            timeout = min(timeout, max(0.0, self._next_due_s))
        waiting = asyncio.create_task(self._sleeper.wait(timeout))
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, stopping):
            task.cancel()
        woken, _ = await asyncio.gather(waiting, stopping, return_exceptions=True)
        return woken is True

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _cycle_safely(self, woken: bool) -> int | None:
        """`_cycle`; None when it failed: there may be work, and nobody will wake us for it."""
        try:
            done: int | None = await self._cycle(woken)
        except (SQLAlchemyError, OSError) as error:
            self.metrics.cycle_failures.inc()
            log.warning("poller.postgres_away", error=f"{type(error).__name__}: {error}"[:300])
            await self._pause(0.2 + random.random() * 0.3)
            done = None
        except RedisError as error:
            self._redis_away(error)
            done = None
        except Exception:
            # Nobody else publishes: whatever it was, it must not end the poller.
            self.metrics.cycle_failures.inc()
            log.exception("poller.cycle_failed")
            await self._pause(1.0)
            done = None
        self._last_cycle = monotonic()
        return done

    async def _cycle(self, woken: bool) -> int:
        """Look, claim, take, publish; returns how much was done, or `BUSY` when Redis has no room: at 0 there is nothing to do.

        Woken by a commit, it takes before it looks.
        """
        work = Work(outbox=True, next_replay_s=None, next_due_s=None) if woken else await self._look()
        if not work.anything and not self._redis_pause_s:
            return 0
        waiting, memory_lost = await self._publisher.waiting()
        self._redis_back()
        if memory_lost:
            await self._after_memory_loss()
        done = 0
        if work.replays:
            done += await self._publish_replays()
        room = (self._settings.publish_ahead - waiting) * self._settings.chunk_max
        if room <= 0:
            await self._pause(FIRST_DOZE_S)
            return BUSY
        limit = min(self._settings.claim_batch, room)
        if work.due:
            claimed = await self._claim_due(limit)
            done += len(claimed)
            await self._publish(claimed, waiting)
            waiting += len(claimed) // self._settings.chunk_max
        if work.outbox:
            done += await self._take(limit, room, waiting)
        return done

    async def _look(self) -> Work:
        async with self._looking.connect() as connection:
            work = await work_waiting(connection)
        self._next_due_s = min((s for s in (work.next_due_s, work.next_replay_s) if s is not None), default=None)
        return work

    async def _claim_due(self, limit: int) -> list[Claimed]:
        async with self._engine.begin() as connection:
            claimed, expired = await claim_due(
                connection,
                limit=limit,
                owner=self.name,
                lease_s=self._settings.lease_s,
                quarantine_after=self._settings.quarantine_after,
            )
            failpoints.reach("claim.before_commit")
        failpoints.reach("claim.committed")
        if expired:
            self.metrics.expired_leases.inc(expired)
            log.warning("leases.expired", attempts=expired)
        return claimed

    async def _take(self, limit: int, capacity: int, waiting: int) -> int:
        intake = await take_from_outbox(
            self._engine,
            limit=limit,
            capacity=capacity,
            owner=self.name,
            lease_s=self._settings.lease_s,
            payload_max_bytes=self._settings.payload_max_bytes,
        )
        self.metrics.taken.inc(intake.taken)
        self.metrics.fanned_out.inc(intake.deliveries)
        self.metrics.duplicates.inc(intake.duplicates)
        self.metrics.rejected.inc(intake.rejected)
        if intake.rejected:
            log.warning("outbox.set_aside", rows=intake.rejected, hint="see: homing events rejected")
        await self._publish(intake.claimed, waiting)
        return intake.taken + intake.rejected

    async def _publish(self, claimed: list[Claimed], waiting: int) -> None:
        """Publish what has been committed; when Redis does not take it, give it back and let the caller pause."""
        if not claimed:
            return
        try:
            claimed = await self._without_crowd(claimed)
            for queue, count in (await self._publisher.publish(claimed, waiting=waiting)).items():
                self.metrics.published.labels(queue).inc(count)
            failpoints.reach("publish.done")
        except RedisError:
            self.metrics.publish_failures.inc(len(claimed))
            async with self._engine.begin() as connection:
                await release_if_claimed(connection, claimed, owner=self.name, delay_s=0.5 + random.random())
            raise

    async def _without_crowd(self, claimed: list[Claimed]) -> list[Claimed]:
        """What is to be published now: while the slow queue is full, what would join it waits in Postgres."""
        slow = [c for c in claimed if c.slow and not for_dead_letter(c)]
        if not slow or await self._publisher.slow_waiting() < self._settings.publish_ahead:
            return claimed
        async with self._engine.begin() as connection:
            await release_if_claimed(connection, slow, owner=self.name, delay_s=1.0 + random.random())
        return [c for c in claimed if c not in slow]

    async def _publish_replays(self) -> int:
        async with self._engine.begin() as connection:
            tickets = await claim_requested(connection, limit=REPLAYS_MAX, lease_s=self._settings.lease_s)
        if tickets:
            await self._publisher.publish_replays(tickets)
        return len(tickets)

    async def _after_memory_loss(self) -> None:
        async with self._engine.begin() as connection:
            released = await release_all_published_not_started(connection)
        if released:
            self.metrics.redis_losses.inc()
            log.warning("redis.memory_lost", published_again=released)

    def _redis_away(self, error: RedisError) -> None:
        low, high = REDIS_PAUSE_S
        self._redis_pause_s = min(high, max(low, self._redis_pause_s * 2)) * (0.75 + random.random() / 2)
        self.metrics.redis_up.set(0)
        log.warning(
            "redis.away", error=f"{type(error).__name__}: {error}"[:200], again_in_s=round(self._redis_pause_s, 1)
        )

    def _redis_back(self) -> None:
        self._redis_pause_s = 0.0
        self.metrics.redis_up.set(1)


def run_poller(settings: Settings, database_url: str, redis_url: str) -> None:
    """Poll until SIGTERM or SIGINT."""
    configure_logging(settings.log_level, process="poller")
    failpoints.arm(settings.failpoints, database_url)

    async def run() -> None:
        poller = Poller(settings, database_url, redis_url)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, poller.stop)
        await poller.run()

    uvloop.run(run())
