"""F10 to F13 and F15: Redis emptied, killed, frozen, restored from old times, and filled with rubbish."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from collections import Counter
from time import monotonic

from workers import keys
from workers.chaos.load import TENANTS
from workers.chaos.scenario import Expect, Scenario, own_redis
from workers.chaos.stage import RECOVERY_S
from workers.chaos.trial import Trial
from workers.messages import CONTROL_QUEUE, DELIVER_QUEUE

_UP = Expect("homing_redis_up", "dips")


async def flushed(trial: Trial) -> None:
    """FLUSHALL under load; every second time the workers are held for a moment, so that much is published and not started.

    On a Redis that is not the suite's, only its one database is emptied.
    """
    trial.receiver.script("*", "status", code=200, delay_s=0.1)
    producer = trial.produce(30 if trial.full else 20)
    with trial.redis() as client:
        for n in range(trial.times(5, 10)):
            await asyncio.sleep(trial.random.uniform(0.8, 1.6))
            held = trial.fleet.living("worker") if n % 2 == 0 else []
            for worker in held:
                trial.fleet.signal(worker, signal.SIGSTOP)
            if held:
                await asyncio.sleep(0.5)
            await trial.mark_published()
            if trial.stage.valkey is None:
                client.flushdb()
            else:
                client.flushall()
            for worker in held:
                trial.fleet.signal(worker, signal.SIGCONT)
            trial.faults += 1
    await asyncio.sleep(1)
    await producer.stop()


async def killed(trial: Trial) -> None:
    """Kill -9, away for a while, started again empty."""
    valkey = trial.stage.valkey
    assert valkey is not None
    producer = trial.produce(20)
    for _ in range(trial.times(1, 2)):
        await asyncio.sleep(2)
        await asyncio.to_thread(valkey.kill)
        trial.faults += 1
        try:
            await asyncio.sleep(trial.times(5, 12))
        finally:
            await asyncio.to_thread(valkey.start)
        await _resumes(trial, "Redis was back")
    await _commits_went_on(trial, await producer.stop())


async def frozen(trial: Trial) -> None:
    """SIGSTOP: connections stay, nothing answers."""
    valkey = trial.stage.valkey
    assert valkey is not None
    assert valkey.pid is not None
    process = valkey.pid
    producer = trial.produce(20)
    await asyncio.sleep(2)
    _signal(process, signal.SIGSTOP)
    trial.faults += 1
    began = monotonic()
    try:
        noticed = await trial.until(lambda: _redis_seen_down(trial), 15)
        trial.figures["noticed_s"] = round(monotonic() - began, 1)
        trial.check(bool(noticed) and monotonic() - began <= 4, "the poller did not give up within 4 s")
        await asyncio.sleep(trial.times(4, 15))
    finally:
        _signal(process, signal.SIGCONT)
    await _resumes(trial, "Redis was thawed")
    await _commits_went_on(trial, await producer.stop())


def _signal(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)


async def _redis_seen_down(trial: Trial) -> bool:
    await trial.fleet.sample()
    return trial.fleet.lowest("homing_redis_up") == 0


async def _resumes(trial: Trial, when: str) -> None:
    """The first attempt after this moment begins within 5 s."""
    at = await trial.now()
    await trial.mark_under_way(may_repeat=False)

    async def started() -> float | None:
        rows = await trial.rows(
            "SELECT extract(epoch FROM min(at))::float8 - %(at)s AS wait_s FROM homing_chaos_moves "
            "WHERE state = 'delivering' AND old_state <> 'delivering' AND at > to_timestamp(%(at)s)",
            at=at,
        )
        wait: float | None = rows[0].wait_s
        return wait

    wait = await trial.until(started, 20)
    trial.figures["resumed_s"] = round(max(wait or 99.0, trial.figures.get("resumed_s", 0.0)), 2)
    trial.check(wait is not None and wait <= 5, f"work did not go on within 5 s after {when}: {wait}")


async def _commits_went_on(trial: Trial, figures: dict[str, float]) -> None:
    trial.figures["commit_p99_s"] = figures["commit_p99_s"]
    trial.check(figures["commit_p99_s"] <= 1, "producers were held up: their commits took over 1 s")
    trial.check(not figures["in_doubt"], "a producer's commit failed")


async def restored(trial: Trial) -> None:
    """Redis comes back with messages of old: all of them are of finished deliveries, and none may be sent again."""
    workers = trial.fleet.living("worker")
    for worker in workers:
        trial.fleet.signal(worker, signal.SIGSTOP)
    for n in range(8):
        await trial.commit(TENANTS[n % 3], f"two.{n}", trial.times(10, 40))
    with trial.redis() as client:
        await trial.until(lambda: _length(client, 5))
        ghosts = {key: client.dump(key) for key in client.scan_iter(f"{keys.NAMESPACE}:*", count=1000)}
        trial.figures["ghost_messages"] = int(client.llen(keys.queue_key(DELIVER_QUEUE)))
        for worker in workers:
            trial.fleet.signal(worker, signal.SIGCONT)
        trial.check(await trial.settled(40), "not delivered before the snapshot was restored")
        before = len(trial.receiver.requests())
        client.flushdb()
        for key, value in ghosts.items():
            if value is not None:
                client.restore(key, 0, value, replace=True)
        trial.faults += 1
        await asyncio.sleep(3)
        after = len(trial.receiver.requests())
        trial.check(after == before, f"{after - before} requests for finished deliveries")
        await trial.until(lambda: _emptied(client), 20)
    await trial.commit(TENANTS[0], "three.0", 20)


async def _length(client: object, at_least: int) -> bool:
    return bool(client.llen(keys.queue_key(DELIVER_QUEUE)) >= at_least)  # type: ignore[attr-defined]


async def _emptied(client: object) -> bool:
    return bool(client.hlen(keys.payloads_key(DELIVER_QUEUE)) == 0)  # type: ignore[attr-defined]


async def poisoned(trial: Trial) -> None:
    """Rubbish and forgeries among the messages, under load."""
    producer = trial.produce(20)
    await trial.delivered(20)
    rows = await trial.rows(
        "SELECT replace(id::text, '-', '') AS id, generation FROM deliveries WHERE state = 'delivered' LIMIT 20"
    )
    forged = [_message(row.id, row.generation + extra) for row in rows for extra in (0, 1)]
    strangers = [_message(uuid.uuid4().hex, 1), _message(rows[0].id, 1, actor="replay")]
    rubbish: list[bytes] = [
        b"\xff\xfe not json",
        b"null",
        b"[]",
        b'{"actor_name": "no_such_actor", "args": []}',
        b'{"actor_name": "deliver", "args": "abc"}',
        b'{"actor_name": "deliver", "args": [["x"], [1]]}',
        b'{"actor_name": "dead_letter", "args": [[], []]}',
        b"[" * 10_000,
        *(text.encode() for text in [*forged, *strangers]),
    ]
    wanted = trial.times(200, 1000)
    with trial.redis() as client:
        for n in range(wanted):
            queue = CONTROL_QUEUE if n % 10 == 9 else DELIVER_QUEUE
            payload = b"x" * (10 << 20) if n in (10, 20) else trial.random.choice(rubbish)
            client.hset(keys.payloads_key(queue), f"rubbish{n}", payload)
            client.rpush(keys.queue_key(queue), f"rubbish{n}")
            trial.faults += 1
            if n % 20 == 0:
                await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        await producer.stop()
        trial.check(await trial.settled(30), "good messages did not get through")
        trial.check(bool(await trial.until(lambda: _emptied(client), 20)), "rubbish is left in Redis")
    await _checked_waits(trial)


def _message(delivery_id: str, generation: int, *, actor: str = "deliver") -> str:
    """A message as the poller would write it, with what Dramatiq's own middleware would obey."""
    options = {"on_success": "replay", "pipe_target": {"actor_name": "replay"}}
    fields = {"queue_name": "deliver", "actor_name": actor, "args": [[delivery_id], [generation]], "kwargs": {}}
    return json.dumps(fields | {"options": options, "message_id": "x", "message_timestamp": 1})


async def _checked_waits(trial: Trial) -> None:
    made = {
        row.id: row.at
        for row in await trial.rows(
            "SELECT event_id::text AS id, extract(epoch FROM made_at)::float8 AS at FROM orders"
        )
    }
    first: dict[str, float] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for request in trial.receiver.requests():
        first.setdefault(request.webhook_id, request.at)
        counts[request.webhook_id, request.endpoint] += 1
    longest = max(first[name] - at for name, at in made.items() if name in first)
    trial.figures["longest_wait_s"] = round(longest, 2)
    trial.check(longest <= RECOVERY_S, f"a good message waited {longest:.1f} s, over {RECOVERY_S:g} s")


SCENARIOS = (
    Scenario("F10", "Redis emptied (FLUSHALL)", flushed, (Expect("homing_redis_memory_lost_total"),)),
    Scenario("F11", "Redis killed and away", killed, (_UP,), (own_redis,), recovery_s=None),
    Scenario("F12", "Redis frozen", frozen, (_UP,), (own_redis,), recovery_s=None),
    Scenario("F13", "Redis restored from old times", restored, (Expect("homing_stale_rejected_total"),)),
    Scenario("F15", "rubbish and forgeries in Redis", poisoned, (Expect("homing_messages_rejected_total"),)),
)
