"""What the poller puts into a real Redis, and how it notices that Redis has forgotten it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import uuid4

import pytest
import redis

from app.claims import Claimed
from workers import keys
from workers.messages import CONTROL_QUEUE, DELIVER_QUEUE
from workers.publisher import Publisher

LIST, PAYLOADS = keys.queue_key(DELIVER_QUEUE), keys.payloads_key(DELIVER_QUEUE)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


async def test_publishing_a_message_twice_queues_it_once(client: redis.Redis, redis_url: str) -> None:
    claimed = [Claimed(uuid4(), 1, uuid4(), "pending")]
    publisher = Publisher(redis_url, chunk_max=1)
    for _ in range(3):
        await publisher.publish(claimed, waiting=0)
    await publisher.close()
    assert (client.llen(LIST), client.hlen(PAYLOADS)) == (1, 1)


async def test_failed_deliveries_go_to_the_dead_letter_actor(client: redis.Redis, redis_url: str) -> None:
    publisher = Publisher(redis_url, chunk_max=50)
    states = ["pending", "failed", "retry_scheduled", "replayed", "failed"]
    counts = await publisher.publish([Claimed(uuid4(), 1, uuid4(), state) for state in states], waiting=1)
    await publisher.close()
    assert counts == {DELIVER_QUEUE: 3, CONTROL_QUEUE: 2}
    (message,) = client.hvals(keys.payloads_key(CONTROL_QUEUE))
    assert json.loads(message)["actor_name"] == "dead_letter"


async def test_memory_loss_is_reported_exactly_once(client: redis.Redis, redis_url: str) -> None:
    first, second = Publisher(redis_url, chunk_max=1), Publisher(redis_url, chunk_max=1)
    await first.waiting()
    assert await first.waiting() == (0, False)
    client.flushall()
    assert [await second.waiting(), await first.waiting(), await second.waiting()] == [
        (0, True),
        (0, False),
        (0, False),
    ]
    await first.close()
    await second.close()


async def test_sentinel_of_a_wrong_type_is_replaced(client: redis.Redis, redis_url: str) -> None:
    publisher = Publisher(redis_url, chunk_max=1)
    client.rpush(keys.SENTINEL, "not ours")
    with pytest.raises(redis.RedisError):
        await publisher.waiting()
    assert await publisher.waiting() == (0, True)
    await publisher.close()


async def test_unreachable_redis_is_said_so() -> None:
    publisher = Publisher("redis://127.0.0.1:1", chunk_max=1)
    with pytest.raises(redis.RedisError):
        await publisher.waiting()
    with pytest.raises(redis.RedisError):
        await publisher.publish([Claimed(uuid4(), 1, uuid4(), "pending")], waiting=0)
    await publisher.close()


async def test_deliveries_of_slow_endpoints_travel_in_a_queue_of_their_own(redis_url: str) -> None:
    publisher = Publisher(redis_url, chunk_max=50)
    quick = [Claimed(uuid4(), 1, uuid4(), "pending") for _ in range(3)]
    slow = [Claimed(uuid4(), 1, uuid4(), "retry_scheduled", slow=True) for _ in range(120)]
    assert await publisher.publish([*quick, *slow], waiting=0) == {"deliver": 3, "slow": 120, "control": 0}
    assert (await publisher.waiting())[0] == 3
    assert await publisher.slow_waiting() == 3, "full chunks"
    await publisher.close()
