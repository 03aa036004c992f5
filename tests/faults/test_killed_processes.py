"""kill -9 at the worst moment: nothing is lost, and what may have been sent twice says so."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from time import monotonic

import pytest

from app.claims import claim_due
from tests.pipeline import running_pipeline, unknown_attempts, until
from tests.receiver import Connection, Receiver, Request, ok


async def test_worker_killed_during_the_post_is_retried_within_25_s_and_recorded_unknown(tmp_path: Path) -> None:
    """Default deadline and lease: the figure that the README promises."""
    arrived = asyncio.Event()

    async def hang_once(request: Request, connection: Connection) -> None:
        if not arrived.is_set():
            arrived.set()
            await connection.closing.wait()
        else:
            await ok(request, connection)

    timing = {"deadline_s": 15.0, "connect_timeout_s": 5.0, "lease_s": 20.0, "slow_poll_s": 1.0}
    async with Receiver(hang_once) as receiver, running_pipeline(tmp_path, workers=1, **timing) as pipeline:
        await pipeline.endpoint(receiver.url)
        await pipeline.publish()
        await asyncio.wait_for(arrived.wait(), 20)
        pipeline.processes.kill("worker0")
        killed_at = monotonic()
        pipeline.processes.start("worker1", "worker")
        await until(lambda: _length(receiver, 2), timeout_s=25)
        assert monotonic() - killed_at <= 25
        await pipeline.all_in("delivered", 1)
        attempts = await pipeline.rows("SELECT number, outcome FROM delivery_attempts ORDER BY generation")
        assert [tuple(a) for a in attempts] == [(1, "unknown"), (2, "delivered")]
        assert receiver.requests[0].headers["webhook-id"] == receiver.requests[1].headers["webhook-id"]
        assert receiver.requests[1].headers["webhook-attempt"] == "2"


async def test_workers_killed_again_and_again_under_load_lose_nothing(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path, quarantine_after=50) as pipeline:
        await pipeline.endpoint(receiver.url)
        for round_ in range(6):
            await pipeline.publish(150)
            seen = len(receiver.requests)
            await until(lambda n=seen: _length(receiver, n + 20))
            pipeline.processes.kill(f"worker{round_}")
            pipeline.processes.start(f"worker{round_ + 2}", "worker")
        await pipeline.all_in("delivered", 900, timeout_s=60)
        sent = Counter(r.headers["webhook-id"] for r in receiver.requests)
        assert len(sent) == 900
        # Each request beyond the first pairs with an attempt whose result nobody recorded.
        assert sum(sent.values()) - 900 <= await unknown_attempts(pipeline)


async def test_pollers_killed_again_and_again_under_load_lose_and_repeat_nothing(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path, pollers=2) as pipeline:
        await pipeline.endpoint(receiver.url)
        for round_ in range(6):
            await pipeline.publish(150)
            seen = len(receiver.requests)
            await until(lambda n=seen: _length(receiver, n + 10))
            pipeline.processes.kill(f"poller{round_}")
            pipeline.processes.start(f"poller{round_ + 2}", "poller")
        await pipeline.all_in("delivered", 900, timeout_s=60)
        assert len(receiver.requests) == 900


async def test_what_a_dead_poller_claimed_and_never_published_is_delivered_after_the_lease(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path, workers=1) as pipeline:
        await asyncio.to_thread(pipeline.processes.stop, "poller0")
        await pipeline.endpoint(receiver.url)
        async with pipeline.engine.begin() as connection:
            await connection.exec_driver_sql(
                "WITH e AS (INSERT INTO events (id, tenant_id, event_type, body, request_id, created_at) "
                "VALUES (homing_uuid7(), 'default', 't', '{}', 'r', now()) RETURNING id) "
                "INSERT INTO deliveries (tenant_id, event_id, endpoint_id) "
                "SELECT 'default', e.id, p.id FROM e, endpoints p"
            )
        async with pipeline.engine.begin() as connection:
            claimed, _ = await claim_due(connection, limit=10, owner="dead poller", lease_s=2.0, quarantine_after=5)
        assert len(claimed) == 1
        pipeline.processes.start("poller1", "poller")
        await pipeline.all_in("delivered", 1)
        (row,) = await pipeline.rows("SELECT attempts, generation FROM deliveries")
        assert (row.attempts, row.generation) == (1, 2)


async def test_a_delivery_that_keeps_killing_its_worker_ends_in_the_dead_letters(tmp_path: Path) -> None:
    timing = {"deadline_s": 0.5, "connect_timeout_s": 0.5, "lease_s": 1.5, "quarantine_after": 2}
    arrivals: asyncio.Queue[None] = asyncio.Queue()

    async def never(request: Request, connection: Connection) -> None:
        arrivals.put_nowait(None)
        await connection.closing.wait()

    async with Receiver(never) as receiver, running_pipeline(tmp_path, workers=1, **timing) as pipeline:
        await pipeline.endpoint(receiver.url)
        await pipeline.publish()
        for n in range(2):
            await asyncio.wait_for(arrivals.get(), 20)
            pipeline.processes.kill(f"worker{n}")
            pipeline.processes.start(f"worker{n + 1}", "worker")
        await pipeline.all_in("dead_lettered", 1)
        (letter,) = await pipeline.rows("SELECT failure_class, attempts, payload FROM dead_letters")
        assert tuple(letter) == ("quarantined", 2, '{"n": 1}')


@pytest.mark.parametrize("name", ["worker0", "poller0"])
async def test_sigterm_finishes_what_is_under_way(tmp_path: Path, name: str) -> None:
    async def slow(request: Request, connection: Connection) -> None:
        await asyncio.sleep(0.5)
        await ok(request, connection)

    async with Receiver(slow) as receiver, running_pipeline(tmp_path, workers=1) as pipeline:
        await pipeline.endpoint(receiver.url)
        await pipeline.publish(40)
        await until(lambda: _length(receiver, 1))
        assert await asyncio.to_thread(pipeline.processes.stop, name, 20) == 0
        pipeline.processes.start("next", name.rstrip("0"))
        await pipeline.all_in("delivered", 40)
        assert await unknown_attempts(pipeline) == 0
        attempts = await pipeline.rows(
            "SELECT outcome, failure_class, error, count(*) FROM delivery_attempts GROUP BY 1, 2, 3"
        )
        assert len(receiver.requests) == 40, attempts


async def _length(receiver: Receiver, at_least: int) -> bool:
    return len(receiver.requests) >= at_least
