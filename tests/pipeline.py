"""The whole pipeline for a test: servers of its own (so that they may be killed), real processes, real receivers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

import redis
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.backoff import RetryPolicy
from app.config import Settings, load_settings
from app.db import make_unpooled_engine
from app.embedded.servers import RunningServers, ensure_servers
from app.endpoints import create_endpoint
from app.migrate import migrate
from app.replays import ReplayAnswer, request_replay
from app.sealing import SecretKeys
from workers.processes import Processes

#: Retries that come quickly, so that a test need not wait for the schedule it does not test.
QUICK = RetryPolicy(max_attempts=6, base_s=0.2, factor=1.5, cap_s=1.0)


async def until(condition: Callable[[], Awaitable[Any]], timeout_s: float = 30.0) -> Any:
    """Wait until a condition is true; what it was. Postgres being away counts as not yet."""
    deadline = monotonic() + timeout_s
    seen: Any = None
    while monotonic() < deadline:
        try:
            if seen := await condition():
                return seen
        except (SQLAlchemyError, OSError) as error:
            seen = error
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s; last seen: {seen!r}")


class Pipeline:
    """A poller and workers on servers of their own."""

    def __init__(self, running: RunningServers, settings: Settings, processes: Processes) -> None:
        self.running = running
        self.settings = settings
        self.processes = processes
        self.engine: AsyncEngine = make_unpooled_engine(running.database_url, name="test")
        self.keys = SecretKeys.load(settings, embedded=True)

    async def endpoint(self, url: str, *, policy: RetryPolicy = QUICK, **fields: Any) -> dict[str, Any]:
        async with self.engine.begin() as connection:
            return await create_endpoint(
                connection, self.keys, tenant_id="default", url=url, actor="test", policy=policy, **fields
            )

    async def publish(
        self, count: int = 1, *, event_type: str = "test.happened", request_id: str | None = None
    ) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(
                text(
                    """
                    INSERT INTO outbox_events (event_type, payload, request_id)
                    SELECT :type, jsonb_build_object('n', n), coalesce(:request_id, 'req-' || n)
                    FROM generate_series(1, :count) AS n
                    """
                ),
                {"type": event_type, "count": count, "request_id": request_id},
            )

    async def rows(self, sql: str, **parameters: Any) -> list[Any]:
        async with self.engine.connect() as connection:
            return list((await connection.execute(text(sql), parameters)).all())

    async def states(self) -> dict[str, int]:
        return {r.state: r.count for r in await self.rows("SELECT state, count(*) FROM deliveries GROUP BY state")}

    async def all_in(self, state: str, count: int, timeout_s: float = 30.0) -> None:
        async def reached() -> bool:
            return await self.states() == {state: count}

        try:
            await until(reached, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{await self.states()} instead of {count} {state}; {error}") from None

    async def clear(self) -> None:
        """Forget everything: for tests that share a pipeline. Nothing may be under way."""
        tables = (
            "outbox_events, outbox_rejected, events, event_keys, deliveries, delivery_attempts, dead_letters, "
            "replay_items, replays, endpoint_secrets, endpoints"
        )
        async with self.engine.begin() as connection:
            await connection.execute(text(f"TRUNCATE {tables}"))

    async def replay(self, request_id: str, *, key: str | None = None) -> ReplayAnswer:
        async with self.engine.begin() as connection:
            return await request_replay(
                connection,
                tenant_id="default",
                request_id=request_id,
                reason="the test says so",
                actor="test",
                idempotency_key=key,
            )

    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.running.redis_url)

    def log(self, name: str) -> str:
        file = self.processes.log_file(name)
        assert file is not None
        return file.read_text(encoding="utf-8") if file.exists() else ""


async def unknown_attempts(pipeline: Pipeline) -> int:
    (row,) = await pipeline.rows("SELECT count(*) FROM delivery_attempts WHERE outcome = 'unknown'")
    return int(row.count)


def event_id(request_headers: dict[str, str]) -> UUID:
    return UUID(request_headers["webhook-id"])


@asynccontextmanager
async def running_pipeline(folder: Path, **options: Any) -> AsyncIterator[Pipeline]:
    """`started_pipeline`, for tests that have one of their own; starting and stopping do not block the test's loop."""
    context = started_pipeline(folder, **options)
    pipeline = await asyncio.to_thread(context.__enter__)
    try:
        yield pipeline
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


@contextmanager
def started_pipeline(folder: Path, *, workers: int = 2, pollers: int = 1, **overrides: Any) -> Iterator[Pipeline]:
    """Start everything in a folder; deadline 2 s and lease 4 s unless overridden; stop and erase everything at the end."""
    chosen = {"deadline_s": 2.0, "connect_timeout_s": 1.0, "lease_s": 4.0, "slow_poll_s": 0.25} | overrides
    settings = load_settings(home=folder / "home", allow_networks=("127.0.0.0/8",), metrics_port=0, **chosen)
    logs = folder / "logs"
    logs.mkdir()
    with ensure_servers(settings) as running:
        try:
            migrate(running.database_url)
            SecretKeys.load(settings, embedded=True)
            environment = os.environ | {
                "HOMING_DATABASE_URL": running.database_url,
                "HOMING_REDIS_URL": running.redis_url,
                "HOMING_SECRET_KEYS_FILE": str(settings.home / "secret_keys"),
                "HOMING_ALLOW_NETWORKS": "127.0.0.0/8",
                "HOMING_METRICS_PORT": "0",
                **{f"HOMING_{name.upper()}": str(value) for name, value in chosen.items()},
            }
            with Processes(environment, logs) as processes:
                pipeline = Pipeline(running, settings, processes)
                for n in range(workers):
                    processes.start(f"worker{n}", "worker")
                for n in range(pollers):
                    processes.start(f"poller{n}", "poller")
                yield pipeline
        finally:
            postgres = running.postgres
            running.stop()
            if postgres is not None:
                postgres.erase()
