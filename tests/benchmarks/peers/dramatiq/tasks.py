"""Stock Dramatiq: one message per delivery, its own retries, an async actor on its AsyncIO middleware."""

from __future__ import annotations

import asyncio
import os

import dramatiq
import httpx
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO
from psycopg_pool import AsyncConnectionPool
from webhooks import (
    BACKOFF_MAX_S,
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

broker = RedisBroker(url=os.environ["PEER_REDIS_URL"])
broker.add_middleware(AsyncIO())
dramatiq.set_broker(broker)

_opening = asyncio.Lock()
_clients: tuple[httpx.AsyncClient, AsyncConnectionPool] | None = None


async def clients() -> tuple[httpx.AsyncClient, AsyncConnectionPool]:
    """This process's HTTP client and connections, made on the event loop that uses them."""
    global _clients
    if _clients is None:
        async with _opening:
            if _clients is None:
                pool = AsyncConnectionPool(
                    DATABASE_URL, min_size=1, max_size=POOL_SIZE, kwargs={"autocommit": True}, open=False
                )
                await pool.open()
                limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
                _clients = httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits), pool
    return _clients


@dramatiq.actor(max_retries=RETRIES, min_backoff=BACKOFF_MIN_S * 1000, max_backoff=BACKOFF_MAX_S * 1000)
async def deliver(delivery_id: str, event_id: str, url: str, secret: str, payload: str) -> None:
    client, pool = await clients()
    body = payload.encode()
    try:
        status: int | None = (await client.post(url, content=body, headers=headers(event_id, secret, body))).status_code
    except httpx.HTTPError:
        status = None
    async with pool.connection() as connection:
        await connection.execute(*record(delivery_id, status))
    require_delivered(status)
