"""Redis wiped or gone, Postgres restarted, garbage in the queue: nothing is lost, nothing is held up."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from tests.pipeline import Pipeline, running_pipeline, unknown_attempts, until
from tests.receiver import Receiver, ok
from workers import keys


async def test_flushall_under_load_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path) as pipeline:
        await pipeline.endpoint(receiver.url)
        with pipeline.redis() as client:
            for _ in range(10):
                await pipeline.publish(100)
                seen = len(receiver.requests)
                await until(lambda n=seen: _more_than(receiver, n))
                client.flushall()
        await pipeline.all_in("delivered", 1000, timeout_s=60)
        assert len(receiver.requests) == 1000
        (most,) = await pipeline.rows("SELECT max(attempts) FROM deliveries")
        assert most.max == 1, "an outage of Redis used up attempts"


async def test_redis_killed_for_a_while_delays_and_uses_up_no_attempts(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path) as pipeline:
        await pipeline.endpoint(receiver.url)
        await pipeline.publish(50)
        await pipeline.all_in("delivered", 50)
        assert pipeline.running.valkey is not None
        pipeline.running.valkey.kill()
        await pipeline.publish(200)
        await until(lambda: _logged(pipeline, "redis.away"))
        pipeline.running.valkey.start()
        await pipeline.all_in("delivered", 250, timeout_s=60)
        assert len(receiver.requests) == 250
        (most,) = await pipeline.rows("SELECT max(attempts) FROM deliveries")
        assert most.max == 1


async def test_postgres_killed_under_load_loses_nothing(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path, quarantine_after=50) as pipeline:
        await pipeline.endpoint(receiver.url)
        assert pipeline.running.postgres is not None
        total = 0
        for _ in range(3):
            await pipeline.publish(300)
            total += 300
            seen = len(receiver.requests)
            await until(lambda n=seen: _more_than(receiver, n + 30))
            await asyncio.to_thread(pipeline.running.postgres.kill)
            await asyncio.to_thread(pipeline.running.postgres.start)
        await pipeline.all_in("delivered", total, timeout_s=60)
        sent = Counter(r.headers["webhook-id"] for r in receiver.requests)
        assert len(sent) == total
        assert sum(sent.values()) - total <= await unknown_attempts(pipeline)


async def test_backends_terminated_under_load_lose_nothing(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path) as pipeline:
        await pipeline.endpoint(receiver.url)
        for _ in range(5):
            await pipeline.publish(100)
            seen = len(receiver.requests)
            await until(lambda n=seen: _more_than(receiver, n))
            await pipeline.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'homing-%' AND pid <> pg_backend_pid()"
            )
        await pipeline.all_in("delivered", 500, timeout_s=60)
        sent = Counter(r.headers["webhook-id"] for r in receiver.requests)
        assert sum(sent.values()) - 500 <= await unknown_attempts(pipeline)


async def test_garbage_and_forged_messages_hold_nothing_up_and_change_nothing(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path) as pipeline:
        endpoint = await pipeline.endpoint(receiver.url)
        await pipeline.publish(1)
        await pipeline.all_in("delivered", 1)
        (done,) = await pipeline.rows("SELECT id, generation FROM deliveries")
        forged = (
            '{"queue_name":"deliver","actor_name":"deliver","args":[["%s"],[%d]],"kwargs":{},'
            '"options":{"on_success":"replay"},"message_id":"x","message_timestamp":1}'
        )
        garbage = [
            b"\xff\xfe not json",
            b"[]",
            b"null",
            b'{"actor_name": "no_such_actor", "args": []}',
            b'{"actor_name": "deliver", "args": "abc"}',
            b'{"actor_name": "deliver", "args": [["x"], [1]]}',
            b'{"actor_name": "dead_letter", "args": [[], []]}',
            b"[" * 100_000,
            b"x" * (10 << 20),
            (forged % (done.id.hex, done.generation)).encode(),
            (forged % (endpoint["id"].hex, 1)).encode(),
        ]
        with pipeline.redis() as client:
            for n in range(200):
                payload = garbage[n % len(garbage)] if n < 22 else garbage[n % 8]
                client.hset(keys.payloads_key("deliver"), f"garbage{n}", payload)
                client.rpush(keys.queue_key("deliver"), f"garbage{n}")
            client.rpush(keys.queue_key("deliver"), "id without a message")
            await pipeline.publish(50)
            await pipeline.all_in("delivered", 51)
            assert len(receiver.requests) == 51
            await until(lambda: _empty(client))


async def _empty(client: object) -> bool:
    return client.hlen(keys.payloads_key("deliver")) == 0  # type: ignore[attr-defined]


async def _more_than(receiver: Receiver, count: int) -> bool:
    return len(receiver.requests) > count


async def _logged(pipeline: Pipeline, what: str) -> bool:
    return what in pipeline.log("poller0")
