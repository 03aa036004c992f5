"""What one worker process holds open, on Dramatiq's event loop: the engine, the transport, the recorder, the metrics."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack

import structlog
from dramatiq import Broker, Middleware, Worker
from dramatiq.asyncio import get_event_loop_thread
from sqlalchemy.ext.asyncio import AsyncEngine

from app.attempts import Settled
from app.backoff import RetryPolicy
from app.config import Settings
from app.db import committing, make_engine
from app.sealing import SecretKeys
from app.transport import Transport
from workers.endpoint_cache import EndpointCache
from workers.exposition import serve_metrics
from workers.metrics import WorkerMetrics
from workers.recorder import Recorder

log = structlog.get_logger(__name__)


class Runtime(Middleware):
    """Opened after Dramatiq's event loop runs, closed before it stops.

    Must stand after `UvloopIO` in the middleware list: `before_` hooks run in list order, `after_` hooks in reverse.
    """

    engine: AsyncEngine
    committing: AsyncEngine
    """The same connections; each statement is a transaction of its own."""
    transport: Transport
    recorder: Recorder

    def __init__(self, settings: Settings, database_url: str, redis_url: str, keys: SecretKeys) -> None:
        self.settings = settings
        self.metrics = WorkerMetrics()
        self.name = f"worker@{socket.gethostname()}:{os.getpid()}"
        self.endpoints = EndpointCache(keys)
        self.default_policy = RetryPolicy()
        self.random = random.random
        self._database_url = database_url
        self._redis_url = redis_url
        self._open = AsyncExitStack()

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Open everything before the first thread can take a message."""
        self._on_loop(self._enter())

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Close everything; all threads have finished."""
        self._on_loop(self._open.aclose())

    async def record(self, settled: Sequence[Settled]) -> None:
        """Record results; returns after their commit.

        Raises:
            sqlalchemy.exc.DBAPIError: Postgres stayed away until they were worth nothing.
        """
        outcomes = await asyncio.gather(*(self.recorder.record(s) for s in settled), return_exceptions=True)
        lost: BaseException | None = None
        for result, written in zip(settled, outcomes, strict=True):
            if isinstance(written, BaseException):
                lost = written
            else:
                self._count(result, written)
        if lost is not None:
            raise lost

    def record_from_thread(self, settled: list[Settled]) -> None:
        """`record`, for code that runs in one of Dramatiq's threads."""
        self._on_loop(self.record(settled))

    def _count(self, settled: Settled, written: bool) -> None:
        if not written:
            self.metrics.stale.labels("result").inc()
            return
        self.metrics.deliveries.labels(settled.next_state).inc()
        if settled.next_state == "retry_scheduled":
            self.metrics.retries.inc()

    async def _enter(self) -> None:
        self.engine = make_engine(
            self._database_url, name="worker", pool_size=self.settings.database_pool_size, planned_once=True
        )
        self.committing = committing(self.engine)
        self._open.push_async_callback(self.engine.dispose)
        self.transport = await self._open.enter_async_context(
            Transport(self.settings, own_servers=[self._database_url, self._redis_url])
        )
        self.recorder = Recorder(
            self.engine,
            self.metrics,
            worker=self.name,
            give_up_after_s=self.settings.lease_s - self.settings.deadline_s,
        )
        self._open.push_async_callback(self.recorder.close)
        await self._open.enter_async_context(
            serve_metrics(
                self.metrics.registry,
                self.settings.metrics_port,
                lambda: self.recorder.alive,
                host=self.settings.metrics_host,
            )
        )

    @staticmethod
    def _on_loop(coroutine: object) -> None:
        thread = get_event_loop_thread()
        assert thread is not None, "UvloopIO must stand before Runtime"
        thread.run_coroutine(coroutine)  # type: ignore[arg-type]
