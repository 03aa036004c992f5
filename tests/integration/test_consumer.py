"""Messages on a real Redis: ours are handed out and leave nothing behind, and nothing that anybody puts there stops them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import pytest
import redis
from dramatiq import Message, MessageProxy
from dramatiq.errors import ConnectionClosed

import workers.broker
from app.claims import Claimed
from app.config import Settings
from workers import keys
from workers.broker import HomingBroker
from workers.messages import CONTROL_QUEUE, DELIVER_QUEUE, encode, parse_tickets
from workers.metrics import WorkerMetrics
from workers.publisher import Publisher

LIST, PAYLOADS, WAKE = (name(DELIVER_QUEUE) for name in (keys.queue_key, keys.payloads_key, keys.wake_key))
CONSUMERS = keys.consumers_key(DELIVER_QUEUE)
DEADLINE_S = 4.0


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def make_broker(settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    monkeypatch.setattr(workers.broker, "IDLE_TIMEOUT_S", 0.05)
    made: list[HomingBroker] = []

    def make() -> HomingBroker:
        broker = HomingBroker(settings, redis_url, WorkerMetrics(), [])
        for name, queue in (("deliver", DELIVER_QUEUE), ("dead_letter", CONTROL_QUEUE), ("replay", CONTROL_QUEUE)):
            dramatiq.actor(broker=broker, actor_name=name, queue_name=queue)(lambda ids, generations: None)
        made.append(broker)
        return broker

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def broker(make_broker: Callable[[], HomingBroker]) -> HomingBroker:
    return make_broker()


async def publish(redis_url: str, count: int) -> set[UUID]:
    """Publish deliveries, one in each message."""
    claimed = [Claimed(uuid4(), 1, uuid4(), "pending") for _ in range(count)]
    publisher = Publisher(redis_url, chunk_max=1)
    await publisher.publish(claimed, waiting=0)
    await publisher.close()
    return {c.delivery_id for c in claimed}


def consume(consumer: Any, until: Callable[[list[MessageProxy]], bool]) -> list[MessageProxy]:
    """Messages that the consumer hands out, acknowledged only by the caller, until the condition holds."""
    messages: list[MessageProxy] = []
    ends = monotonic() + DEADLINE_S
    while not until(messages):
        assert monotonic() < ends, f"only {len(messages)} messages came"
        if (message := next(consumer)) is not None:
            messages.append(message)
    return messages


def consume_all(consumer: Any, client: redis.Redis) -> set[UUID]:
    """Work on everything that waits, as worker threads do."""
    seen: set[UUID] = set()
    ends = monotonic() + DEADLINE_S
    while client.exists(LIST) or client.hlen(PAYLOADS):
        assert monotonic() < ends, "something is left behind"
        if (message := next(consumer)) is not None:
            seen.update(delivery_id for delivery_id, _ in tickets_of(message))
            consumer.ack(message)
    return seen


def tickets_of(message: Any) -> list[tuple[UUID, int]]:
    return parse_tickets(*message.args)


def rejected(broker: HomingBroker, why: str) -> float:
    return broker.metrics.registry.get_sample_value("homing_messages_rejected_total", {"why": why}) or 0.0


# --- ours ------------------------------------------------------------------------------------------------------------


async def test_published_messages_are_handed_out_and_leave_nothing_behind(
    broker: HomingBroker, client: redis.Redis, redis_url: str
) -> None:
    published = await publish(redis_url, 40)
    consumer = broker.consume(DELIVER_QUEUE)
    assert consume_all(consumer, client) == published
    assert client.keys("*taken*") == []
    assert not broker.in_flight[DELIVER_QUEUE]


async def test_consumer_fetches_no_more_than_its_threads_can_take(
    broker: HomingBroker, client: redis.Redis, redis_url: str, settings: Settings
) -> None:
    await publish(redis_url, settings.worker_threads + 5)
    consumer = broker.consume(DELIVER_QUEUE)
    messages = consume(consumer, lambda got: len(got) == settings.worker_threads)
    assert next(consumer) is None
    assert client.llen(LIST) == 5
    consumer.nack(messages[0])
    assert next(consumer) is not None


async def test_forgotten_scripts_are_loaded_again(broker: HomingBroker, client: redis.Redis, redis_url: str) -> None:
    publisher = Publisher(redis_url, chunk_max=1)
    consumer = broker.consume(DELIVER_QUEUE)
    for _ in range(2):
        client.script_flush()
        await publisher.publish([Claimed(uuid4(), 1, uuid4(), "pending")], waiting=0)
        client.script_flush()
        (message,) = consume(consumer, lambda got: len(got) == 1)
        client.script_flush()
        consumer.ack(message)
    await publisher.close()
    assert client.hlen(PAYLOADS) == 0


def test_broker_has_no_delay_queue_and_refuses_to_enqueue(broker: HomingBroker) -> None:
    assert broker.queues == {DELIVER_QUEUE, CONTROL_QUEUE}
    assert broker.get_declared_delay_queues() == set()
    message: Message[Any] = Message(queue_name=DELIVER_QUEUE, actor_name="deliver", args=(), kwargs={}, options={})
    for delay in (None, 1000):
        with pytest.raises(RuntimeError, match="poller only"):
            broker.enqueue(message, delay=delay)
    with pytest.raises(RuntimeError, match="poller only"):
        broker.actors["deliver"].send([], [])


# --- what others put there -------------------------------------------------------------------------------------------


def forged(**changes: Any) -> bytes:
    fields = {"queue_name": DELIVER_QUEUE, "actor_name": "deliver", "args": [[uuid4().hex], [1]], "kwargs": {}}
    return json.dumps(fields | {"options": {}, "message_id": "x", "message_timestamp": 1} | changes).encode()


GARBAGE: dict[str, bytes | None] = {
    "no payload": None,
    "empty": b"",
    "not JSON": b"hello",
    "not UTF-8": b"\xff\xfe\x00",
    "list": b"[]",
    "number": b"1",
    "null": b"null",
    "text": b'"deliver"',
    "empty object": b"{}",
    "deep": b"[" * 8000 + b"]" * 8000,
    "deep arguments": b'{"actor_name": "deliver", "args": ' + b"[" * 7000 + b"]" * 7000 + b"}",
    "long number": b'{"actor_name": "deliver", "args": ' + b"9" * 5000 + b"}",
    "unknown actor": forged(actor_name="rm"),
    "actor is a list": forged(actor_name=["deliver"]),
    "actor of the other queue": forged(actor_name="replay"),
    "no arguments": forged(args=None),
    "arguments are a number": forged(args=7),
    "10 MB": forged(kwargs={"x": "x" * 10_000_000}),
    "pickle": b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins.",
}


async def test_garbage_ahead_of_good_messages_is_counted_and_leaves_nothing_behind(
    broker: HomingBroker, client: redis.Redis, redis_url: str
) -> None:
    for name, payload in GARBAGE.items():
        client.rpush(LIST, f"garbage \xff {name}".encode("latin-1"))
        if payload is not None:
            client.hset(PAYLOADS, f"garbage \xff {name}".encode("latin-1"), payload)
    published = await publish(redis_url, 20)
    consumer = broker.consume(DELIVER_QUEUE)
    assert consume_all(consumer, client) == published
    assert rejected(broker, "undecodable") == len(GARBAGE)
    assert client.keys("*taken*") == []


@pytest.mark.parametrize("args", [[], [1, 2, 3], {"a": 1}, "ab", [[1], [1]], [["x"], [1]], [None, None]])
def test_forged_arguments_reach_the_actor_as_they_are(broker: HomingBroker, client: redis.Redis, args: Any) -> None:
    """The actor refuses them (test_messages); what matters here is that nothing else of the message is believed."""
    options = {"on_success": {"actor_name": "replay"}, "eta": 1 << 60, "retries": 9, "pipe_target": {}, "throws": 1}
    client.hset(PAYLOADS, "f", forged(args=args, options=options, kwargs={"x": 1}, queue_name="other"))
    client.rpush(LIST, "f")
    consumer = broker.consume(DELIVER_QUEUE)
    (message,) = consume(consumer, lambda got: len(got) == 1)
    assert message.options == {"redis_message_id": b"f"}
    assert (message.kwargs, message.queue_name, message.args) == ({}, DELIVER_QUEUE, tuple(args))
    consumer.ack(message)
    assert client.hlen(PAYLOADS) == 0


def wrong_keys(broker: HomingBroker) -> list[str]:
    return [LIST, PAYLOADS, WAKE, CONSUMERS, keys.taken_key(DELIVER_QUEUE, broker.consumer_id)]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("which", range(5))
async def test_key_of_a_wrong_type_is_removed_and_consuming_goes_on(
    broker: HomingBroker, client: redis.Redis, redis_url: str, which: int, before: bool
) -> None:
    name = wrong_keys(broker)[which]
    consumer = None if before else broker.consume(DELIVER_QUEUE)
    client.set(name, "not ours")
    consumer = consumer or broker.consume(DELIVER_QUEUE)
    ends = monotonic() + DEADLINE_S
    while client.type(name) == b"string":
        assert monotonic() < ends
        next(consumer)
    assert rejected(broker, "foreign_key") == 1
    published = await publish(redis_url, 3)
    assert consume_all(consumer, client) == published


async def test_payloads_without_their_list_are_removed_with_it(
    broker: HomingBroker, client: redis.Redis, redis_url: str
) -> None:
    await publish(redis_url, 3)
    client.set(LIST, "not ours")
    consumer = broker.consume(DELIVER_QUEUE)
    next(consumer)
    assert client.hlen(PAYLOADS) == 0


def test_wrong_type_under_a_dead_consumers_name_does_not_stop_the_sweep(
    broker: HomingBroker, client: redis.Redis
) -> None:
    client.set(keys.taken_key(DELIVER_QUEUE, "dead"), "not ours")
    client.zadd(CONSUMERS, {"dead": 0})
    consumer = broker.consume(DELIVER_QUEUE)
    assert next(consumer) is None
    assert client.zscore(CONSUMERS, "dead") is None


# --- when connections, consumers or Redis fail -----------------------------------------------------------------------


async def test_connection_lost_while_idle_is_reported_to_dramatiq(
    broker: HomingBroker, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.broker, "IDLE_TIMEOUT_S", 4)
    consumer = broker.consume(DELIVER_QUEUE)
    waiting = asyncio.create_task(asyncio.to_thread(next, consumer))
    while not (blocked := [c["id"] for c in client.client_list() if c["cmd"] == "blpop"]):
        await asyncio.sleep(0.01)
    client.client_kill_filter(_id=blocked[0])
    with pytest.raises(ConnectionClosed):
        await waiting


async def test_what_was_fetched_and_not_worked_on_comes_back_after_a_reconnect(
    broker: HomingBroker, client: redis.Redis, redis_url: str
) -> None:
    published = await publish(redis_url, 6)
    (working,) = consume(broker.consume(DELIVER_QUEUE), lambda got: len(got) == 1)
    client.client_kill_filter(_type="normal", skipme=True)
    again = broker.consume(DELIVER_QUEUE)
    others = consume(again, lambda got: len(got) == 5)
    assert next(again) is None
    for message in (working, *others):
        again.ack(message)
    assert {tickets_of(m)[0][0] for m in (working, *others)} == published
    assert client.hlen(PAYLOADS) == 0


async def test_close_puts_back_what_was_fetched_and_not_handed_out(
    broker: HomingBroker, client: redis.Redis, redis_url: str
) -> None:
    await publish(redis_url, 6)
    consumer = broker.consume(DELIVER_QUEUE)
    messages = consume(consumer, lambda got: len(got) == 2)
    consumer.close()
    assert client.llen(LIST) == 4
    consumer.requeue(messages)
    assert (client.llen(LIST), client.keys("*taken*")) == (6, [])
    assert not broker.in_flight[DELIVER_QUEUE]


async def test_dead_consumers_leftovers_are_swept_and_a_live_ones_are_not(
    make_broker: Callable[[], HomingBroker], client: redis.Redis, redis_url: str
) -> None:
    dead, live, sweeper = make_broker(), make_broker(), make_broker()
    for broker in (dead, live):
        await publish(redis_url, 1)
        consume(broker.consume(DELIVER_QUEUE), lambda got: len(got) == 1)
    client.zadd(CONSUMERS, {dead.consumer_id: 0})
    assert next(sweeper.consume(DELIVER_QUEUE)) is None
    assert client.keys("*taken*") == [keys.taken_key(DELIVER_QUEUE, live.consumer_id).encode()]
    assert client.hlen(PAYLOADS) == 1
    assert client.zscore(CONSUMERS, dead.consumer_id) is None


async def test_acknowledgements_that_redis_refuses_do_not_use_up_the_consumers_room(
    broker: HomingBroker, client: redis.Redis, redis_url: str, settings: Settings
) -> None:
    """As during a failover (READONLY) or on a full disk (MISCONF): Dramatiq does not try such an acknowledgement again."""
    await publish(redis_url, settings.worker_threads)
    consumer = broker.consume(DELIVER_QUEUE)
    messages = consume(consumer, lambda got: len(got) == settings.worker_threads)
    client.config_set("min-replicas-to-write", 1)
    try:
        for message in messages:
            with pytest.raises(redis.ResponseError):
                consumer.ack(message)
    finally:
        client.config_set("min-replicas-to-write", 0)
    published = await publish(redis_url, 1)
    consume(consumer, lambda got: published <= {tickets_of(message)[0][0] for message in got})


def test_encoded_message_is_what_the_consumer_decodes(broker: HomingBroker, client: redis.Redis) -> None:
    tickets = [(uuid4(), n) for n in range(1, 51)]
    message_id, payload = encode(DELIVER_QUEUE, "deliver", tickets)
    client.hset(PAYLOADS, message_id, payload)
    client.rpush(LIST, message_id)
    (message,) = consume(broker.consume(DELIVER_QUEUE), lambda got: len(got) == 1)
    assert tickets_of(message) == tickets
