"""Homing as a system on the benchmark's stage: endpoints, commits, and its own processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from app.config import load_settings
from app.db import make_engine
from app.endpoints import create_endpoint
from app.migrate import migrate
from app.sealing import SecretKeys
from workers import keys
from workers.bench.rows import Rows
from workers.bench.stage import Stage
from workers.messages import DELIVER_QUEUE
from workers.processes import Processes

#: Seconds that starting may take.
STARTING_S = 30.0
#: How many endpoints the load is spread over.
ENDPOINTS = 10
#: Allowed to be called, so that the receiver may be on this machine.
LOOPBACK = "127.0.0.0/8"


class Homing:
    """Pollers, workers and a migrated database. Made by `homing`."""

    name = "homing"

    def __init__(self, stage: Stage, processes: Processes, rows: Rows) -> None:
        self.rows = rows
        self._stage = stage
        self._processes = processes

    @property
    def environment(self) -> dict[str, str]:
        """The complete environment of its processes, for a command that is run beside them."""
        return self._processes.env

    def pids(self) -> dict[str, int]:
        """Its processes, by name."""
        return self._processes.pids()

    async def make_endpoints(self, paths: Sequence[str], types: Sequence[str]) -> None:
        """One endpoint for each path at the receiver; the n-th subscribes to the n-th type or pattern."""
        settings = load_settings(home=self._stage.home, database_url=None, redis_url=None, allow_networks=(LOOPBACK,))
        secrets = SecretKeys.load(settings, embedded=True)
        engine = make_engine(self._stage.postgres.url, name="bench", pool_size=1)
        async with engine.begin() as connection:
            for path, event_type in zip(paths, types, strict=True):
                await create_endpoint(
                    connection,
                    secrets,
                    tenant_id="default",
                    url=f"http://127.0.0.1:{self._stage.receiver.port}/{path}",
                    event_types=[event_type],
                    actor="bench",
                )
        await engine.dispose()

    async def start_workers(self, count: int) -> None:
        """Start workers; returns when each has shown itself in Redis, which is when it is ready for work."""
        for n in range(count):
            self._processes.start(f"worker-{n + 1}", "worker")
        deadline = time.monotonic() + STARTING_S
        client = Redis.from_url(self._stage.valkey.url)
        try:
            while await client.zcard(keys.consumers_key(DELIVER_QUEUE)) < count:
                if time.monotonic() > deadline:
                    raise TimeoutError("the workers did not start; see their logs")
                await asyncio.sleep(0.05)
        finally:
            await client.aclose()

    def start_relay(self, count: int = 1) -> None:
        """Start pollers, and do not wait for them."""
        for n in range(count):
            self._processes.start("poller" if count == 1 else f"poller-{n + 1}", "poller")


@asynccontextmanager
async def homing(stage: Stage) -> AsyncIterator[Homing]:
    """Homing on a stage: migrated, nothing started; its processes are stopped at the end."""
    migrate(stage.postgres.url)
    settings = load_settings(home=stage.home, database_url=None, redis_url=None)
    SecretKeys.load(settings, embedded=True)
    environment = stage.environment | {
        "HOMING_DATABASE_URL": stage.postgres.url,
        "HOMING_REDIS_URL": stage.valkey.url,
        "HOMING_SECRET_KEYS_FILE": str(stage.home / "secret_keys"),
        "HOMING_ALLOW_NETWORKS": LOOPBACK,
        "HOMING_METRICS_PORT": "0",
    }
    async with Rows(stage.bench_url(), "outbox_events") as rows:
        with Processes(environment, stage.home) as processes:
            yield Homing(stage, processes, rows)
