"""The scenarios: a backlog drained, and a steady rate. Each on a fresh stage; each answers one flat result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import text

from workers import keys
from workers.bench.stage import ENDPOINTS, Stage, stage
from workers.bench.usage import cpu_of, rss_max_mib, used_since
from workers.messages import DELIVER_QUEUE

#: Seconds without any progress after which a scenario gives up.
STALLED_S = 30.0
PAYLOAD_BYTES = 512

Say = Callable[[str], None]


async def backlog(events: int, workers: int, delay_ms: float, say: Say) -> dict[str, Any]:
    """N events committed before the poller starts, then drained: deliveries a second between the first and the last.

    Measured from the first recorded delivery, so that the start of the poller's process does not count.
    """
    with stage(workers=workers, delay_ms=delay_ms) as s:
        await s.make_endpoints()
        await s.commit(events, PAYLOAD_BYTES)
        await _workers_ready(s)
        before = cpu_of(s.pids)
        s.processes.start("poller")
        first_at, first = await _wait_for(s, lambda done: done > 0, say)
        last_at, last = await _wait_for(s, lambda done: done >= events, say)
        seconds = last_at - first_at
        return _result(s, f"backlog-{delay_ms:g}ms" if delay_ms else "backlog", last, seconds, before) | {
            "deliveries_per_s": round((last - first) / seconds, 1)
        }


async def steady(rate: float, seconds: float, workers: int, say: Say) -> dict[str, Any]:
    """One event a transaction at a fixed rate: how long from its commit until the receiver has it."""
    with stage(workers=workers) as s:
        await s.make_endpoints()
        await _workers_ready(s)
        s.processes.start("poller")
        await s.commit(ENDPOINTS * workers, PAYLOAD_BYTES)
        warm = ENDPOINTS * workers
        await _wait_for(s, lambda done: done >= warm, say)
        before = cpu_of(s.pids)
        began = time.monotonic()
        committed: dict[str, float] = {}
        tasks = []
        for n in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + n / rate - time.monotonic()))
            tasks.append(asyncio.create_task(_commit_one(s, n, committed)))
        await asyncio.gather(*tasks)
        await _wait_for(s, lambda done: done >= warm + len(tasks), say)
        result = _result(s, f"steady-{rate:g}", len(tasks), time.monotonic() - began, before)
        received = await asyncio.to_thread(s.received)
        waits = sorted((received[name] - at) * 1000 for name, at in committed.items() if name in received)
        return result | {f"p{p}_ms": round(waits[min(len(waits) - 1, len(waits) * p // 100)], 1) for p in (50, 95, 99)}


async def _commit_one(s: Stage, n: int, committed: dict[str, float]) -> None:
    """The time is taken before COMMIT is sent, so that the wait is never made shorter than it is."""
    async with s.engine.begin() as connection:
        row = await connection.execute(
            text(
                "INSERT INTO outbox_events (event_type, payload) "
                "VALUES (:type, jsonb_build_object('n', CAST(:n AS integer), 'pad', repeat('x', 480))) RETURNING id"
            ),
            {"type": f"bench.{n % ENDPOINTS}", "n": n},
        )
        name = str(row.scalar_one())
        at = time.time()
    committed[name] = at


async def _workers_ready(s: Stage) -> None:
    """Wait until every worker has shown itself in Redis, which is when it is ready for work."""
    wanted = sum(name.startswith("worker") for name in s.processes.pids())
    deadline = time.monotonic() + STALLED_S
    client = Redis.from_url(s.servers.redis_url)
    try:
        while await client.zcard(keys.consumers_key(DELIVER_QUEUE)) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError("the workers did not start; see their logs")
            await asyncio.sleep(0.05)
    finally:
        await client.aclose()


async def _wait_for(s: Stage, reached: Callable[[int], bool], say: Say) -> tuple[float, int]:
    seen, progress_at = 0, time.monotonic()
    while True:
        done = await s.recorded()
        now = time.monotonic()
        if reached(done):
            return now, done
        if done > seen:
            seen, progress_at = done, now
            say(f"{done} recorded")
        elif now - progress_at > STALLED_S:
            raise TimeoutError(f"no progress for {STALLED_S:g} s at {done} deliveries")
        await asyncio.sleep(0.1)


def _result(s: Stage, name: str, deliveries: int, seconds: float, before: dict[str, float]) -> dict[str, Any]:
    pids = s.pids
    used = used_since(before, pids)
    return {
        "scenario": name,
        "deliveries": deliveries,
        "seconds": round(seconds, 3),
        "deliveries_per_s": round(deliveries / seconds, 1),
        "p50_ms": None,
        "p95_ms": None,
        "p99_ms": None,
        "cpu_us_per_delivery": {name: round(value / deliveries * 1e6) for name, value in used.items()},
        "rss_mib_max": round(max(rss_max_mib(pid) for name, pid in pids.items() if name.startswith("worker")), 1),
    }


Scenario = Callable[[Say], Awaitable[dict[str, Any]]]


def scenarios(events: int, workers: int) -> dict[str, Scenario]:
    """Every scenario by name."""
    return {
        "backlog": lambda say: backlog(events, workers, 0, say),
        "backlog-240ms": lambda say: backlog(events, workers, 240, say),
        "steady-50": lambda say: steady(50, 20, workers, say),
    }
