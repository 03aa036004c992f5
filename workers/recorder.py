"""Group commit of results: many waiters, one statement, one commit; only then do the waiters go on.

An actor that awaits `record` returns after the commit, so Dramatiq's acknowledgement always follows it.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from time import monotonic
from typing import NamedTuple

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from app import failpoints
from app.attempts import Settled, Ticket, record_if_delivering, recorded_by_one_statement
from app.db import committing, is_away
from workers.metrics import WorkerMetrics

log = structlog.get_logger(__name__)

#: Most results in one statement.
FLUSH_MAX = 500
#: How long a flush waits for company after its first result, in seconds. Idle, it costs one delivery this much.
GATHER_S = 0.004


class _Waiting(NamedTuple):
    settled: Settled
    give_up_at: float
    written: asyncio.Future[bool]


class Recorder:
    """One per worker process; `record` may be awaited by any number of tasks of its loop.

    Args:
        worker: the name that attempts are recorded under.
        give_up_after_s: how long a result is worth keeping while Postgres is away. After its lease somebody else owns the
            delivery, and recording could only miss.
    """

    def __init__(self, engine: AsyncEngine, metrics: WorkerMetrics, *, worker: str, give_up_after_s: float) -> None:
        self._engine = engine
        self._committing = committing(engine)
        self._metrics = metrics
        self._worker = worker
        self._give_up_after_s = give_up_after_s
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._under_way: list[_Waiting] = []
        self._task = asyncio.create_task(self._run(), name="recorder")

    async def record(self, settled: Settled) -> bool:
        """Wait until a result is committed.

        Returns:
            False when the delivery had moved on (its lease had ended), and nothing was written.

        Raises:
            sqlalchemy.exc.DBAPIError: Postgres stayed away until the result was worth nothing; the attempt will be
                recorded as unknown by whoever claims the delivery next.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Waiting(settled, monotonic() + self._give_up_after_s, future))
        return await future

    async def close(self) -> None:
        """Stop; whoever still waits is cancelled."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for waiting in self._under_way:
            waiting.written.cancel()
        while not self._queue.empty():
            self._queue.get_nowait().written.cancel()

    @property
    def alive(self) -> bool:
        """False once the flushing task has ended, which it never should."""
        return not self._task.done()

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            self._under_way = batch
            await asyncio.sleep(GATHER_S)
            while len(batch) < FLUSH_MAX and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._flush(batch)

    async def _flush(self, batch: list[_Waiting]) -> None:
        pause = 0.05
        while batch:
            try:
                written = await self._write([w.settled for w in batch])
            except Exception as error:
                self._metrics.flush_failures.inc()
                if not is_away(error):
                    await self._flush_one_by_one(batch, error)
                    return
                log.warning("results.waiting", results=len(batch), error=type(error).__name__)
                batch = self._drop_expired(batch, error)
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(pause * 2, 1.0)
                continue
            self._metrics.flush_results.observe(len(batch))
            for waiting in batch:
                if not waiting.written.done():
                    waiting.written.set_result((waiting.settled.delivery_id, waiting.settled.generation) in written)
            return

    async def _write(self, settled: list[Settled]) -> set[Ticket]:
        if all(recorded_by_one_statement(result) for result in settled):
            # One statement commits by itself, without BEGIN and COMMIT.
            async with self._committing.connect() as connection:
                failpoints.reach("record.before_commit")
                written = await record_if_delivering(connection, settled, worker=self._worker)
        else:
            async with self._engine.begin() as connection:
                written = await record_if_delivering(connection, settled, worker=self._worker)
                failpoints.reach("record.before_commit")
        failpoints.reach("record.committed")
        return written

    async def _flush_one_by_one(self, batch: list[_Waiting], error: Exception) -> None:
        """The database refused the batch because of something in it: the others must not suffer for that one."""
        if len(batch) > 1:
            for waiting in batch:
                await self._flush([waiting])
            return
        waiting = batch[0]
        log.error("result.refused", delivery_id=str(waiting.settled.delivery_id), error=str(error)[:300])
        bare = replace(waiting.settled, error="the text of this error could not be stored", response_excerpt=None)
        if bare == waiting.settled:
            if not waiting.written.done():
                waiting.written.set_exception(error)
            return
        await self._flush([waiting._replace(settled=bare)])

    @staticmethod
    def _drop_expired(batch: list[_Waiting], error: Exception) -> list[_Waiting]:
        kept = []
        for waiting in batch:
            if monotonic() < waiting.give_up_at:
                kept.append(waiting)
            elif not waiting.written.done():
                waiting.written.set_exception(error)
        return kept
