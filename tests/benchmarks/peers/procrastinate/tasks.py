"""Procrastinate: jobs live in the same PostgreSQL, deferred in the transaction that takes the outbox rows."""

from __future__ import annotations

from typing import Any

import aiohttp
from procrastinate import App, JobContext, PsycopgConnector, RetryStrategy
from procrastinate.jobs import DeleteJobCondition
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from webhooks import (
    BACKOFF_MIN_S,
    CONCURRENCY,
    DATABASE_URL,
    POOL_SIZE,
    RETRIES,
    TIMEOUT_S,
    headers,
    record,
    require_delivered,
)

app = App(connector=PsycopgConnector(conninfo=DATABASE_URL))


async def autocommit(connection: AsyncConnection) -> None:
    """Every statement of Procrastinate is a transaction of its own: BEGIN and COMMIT would be two trips more."""
    await connection.set_autocommit(True)


@app.task(retry=RetryStrategy(max_attempts=RETRIES, exponential_wait=BACKOFF_MIN_S), pass_context=True)
async def deliver(context: JobContext, *, delivery_id: str, event_id: str, url: str, secret: str, payload: str) -> None:
    session: aiohttp.ClientSession = context.additional_context["session"]
    pool: AsyncConnectionPool = context.additional_context["pool"]
    body = payload.encode()
    try:
        async with session.post(url, data=body, headers=headers(event_id, secret, body)) as response:
            status: int | None = response.status
    except (aiohttp.ClientError, TimeoutError):
        status = None
    async with pool.connection() as connection:
        await connection.execute(*record(delivery_id, status))
    require_delivered(status)


async def work() -> None:
    """Run one worker process until it is told to stop."""
    connector = aiohttp.TCPConnector(limit=CONCURRENCY)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    options: dict[str, Any] = {"cookie_jar": aiohttp.DummyCookieJar()}
    async with (
        AsyncConnectionPool(DATABASE_URL, min_size=1, max_size=POOL_SIZE, configure=autocommit) as pool,
        app.open_async(pool),
        aiohttp.ClientSession(connector=connector, timeout=timeout, **options) as session,
    ):
        print("worker is ready", flush=True)
        await app.run_worker_async(
            concurrency=CONCURRENCY,
            delete_jobs=DeleteJobCondition.SUCCESSFUL,
            additional_context={"session": session, "pool": pool},
        )
