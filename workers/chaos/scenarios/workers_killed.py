"""F05 to F08: workers killed at random and at named places, frozen and thawed, and stopped in order."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from time import monotonic

from workers.chaos.fleet import Child
from workers.chaos.load import TENANTS
from workers.chaos.scenario import Expect, Scenario
from workers.chaos.stage import DEADLINE_S, LEASE_S
from workers.chaos.trial import Trial

#: Place of death -> how many requests too many one delivery may cause.
PLACES = {
    "deliver.received": 0,
    "start.before_commit": 0,
    "start.committed": 0,
    "post.before": 0,
    "post.answered": 1,
    "record.before_commit": 1,
    "record.committed": 0,
    "ack.before": 0,
    "ack.done": 0,
}
_ONE_AT_A_TIME = {"HOMING_WORKER_THREADS": "1", "HOMING_CHUNK_MAX": "1"}


async def killed_at_random(trial: Trial) -> None:
    """Kill -9 every 0.5 to 2 s, each time one of the workers; a new one takes its place at once."""
    trial.produce(30 if trial.full else 20)
    ends = monotonic() + trial.times(12, 45)
    while monotonic() < ends:
        await asyncio.sleep(trial.random.uniform(0.5, 2.0))
        ready = [child for child in trial.fleet.living("worker") if '"worker.started"' in child.said()]
        if len(ready) > 1:
            victim = trial.random.choice(ready)
            trial.fleet.start("worker")
            await trial.kill(victim)
    await trial.fleet.ready(*trial.fleet.living("worker"))


async def killed_at_places(trial: Trial) -> None:
    """One worker for each place, each with one delivery in its hands, all killed by their failpoints at once."""
    for _ in range(trial.times(1, 5)):
        await _one_round(trial)
    await _killed_while_sent(trial)
    await trial.settled(30)
    await _check_places(trial)


async def _one_round(trial: Trial) -> None:
    victims = {
        place: trial.fleet.start("worker", _ONE_AT_A_TIME | {"HOMING_FAILPOINTS": f"{place}=kill"}, dies=True)
        for place in PLACES
    }
    await trial.fleet.ready(*victims.values())
    # One event for each, so that each takes exactly one.
    await trial.commit(TENANTS[0], "one.0", len(victims))
    for place, victim in victims.items():
        died = await trial.fleet.wait(victim, 15) is not None
        trial.check(died, f"the worker did not die at {place}")
        trial.faults += died
        await trial.mark_held_by(victim, may_repeat=PLACES[place] > 0)
        trial.figures[f"pids at {place}"] = [*trial.figures.get(f"pids at {place}", []), victim.pid]
    helper = await trial.worker()
    await trial.settled(20)
    await trial.fleet.terminate(helper)


async def _killed_while_sent(trial: Trial) -> None:
    """The request has arrived, its answer has not left."""
    path = f"{TENANTS[1]}-0"
    trial.receiver.script(path, "status", code=200, delay_s=1.0)
    victims = [trial.fleet.start("worker", _ONE_AT_A_TIME) for _ in range(trial.times(2, 4))]
    await trial.fleet.ready(*victims)
    await trial.commit(TENANTS[1], "one.0", len(victims))
    trial.check(await trial.receiver.wait_for(len(victims), path=path), "not every request arrived")
    for victim in victims:
        await trial.kill(victim)
    trial.receiver.well(path)
    trial.fleet.start("worker")


async def _check_places(trial: Trial) -> None:
    """Which place each extra request belongs to: the worker of the attempt before it."""
    places = {pid: place for place in PLACES for pid in trial.figures.pop(f"pids at {place}")}
    rows = await trial.rows(
        "SELECT a.worker, e.id::text AS event_id FROM delivery_attempts a JOIN deliveries d ON d.id = a.delivery_id "
        "JOIN events e ON e.id = d.event_id WHERE a.outcome = 'unknown'"
    )
    requests = Counter(request.webhook_id for request in trial.receiver.requests())
    extra: Counter[str] = Counter()
    for row in rows:
        place = places.get(int(row.worker.rpartition(":")[2]), "sent")
        over = requests[row.event_id] - 1
        extra[place] += over
        trial.check(over <= PLACES.get(place, 1), f"killed at {place}: {over} requests too many for {row.event_id}")
    trial.figures["extra_requests"] = {place: n for place, n in extra.items() if n}


async def frozen(trial: Trial) -> None:
    """SIGSTOP until its leases have long ended and others have its work, then SIGCONT: what it still writes must not count."""
    trial.receiver.script("*", "status", code=200, delay_s=0.2)
    producer = trial.produce(20)
    stale = 0
    for _ in range(trial.times(1, 2)):
        zombie = trial.fleet.living("worker")[0]
        await trial.until(lambda z=zombie: _holds(trial, z))  # type: ignore[misc]
        trial.fleet.signal(zombie, signal.SIGSTOP)
        trial.faults += 1
        held = await trial.mark_held_by(zombie)
        await asyncio.sleep(trial.times(8, 15))
        trial.fleet.signal(zombie, signal.SIGCONT)
        stale += len(held)
        await asyncio.sleep(3)
    await producer.stop()
    trial.figures["held_when_frozen"] = stale


async def _holds(trial: Trial, child: Child) -> bool:
    rows = await trial.rows(
        "SELECT 1 FROM deliveries WHERE state = 'delivering' AND lease_owner = %(owner)s LIMIT 1", owner=child.owner
    )
    return bool(rows)


async def rolling(trial: Trial) -> None:
    """SIGTERM one worker after another under load, as a deployment does."""
    trial.receiver.script("*", "status", code=200, delay_s=0.1)
    producer = trial.produce(25)
    drains = []
    for _ in range(trial.times(4, 10)):
        await asyncio.sleep(0.5)
        old = trial.fleet.living("worker")[0]
        await trial.fleet.ready(trial.fleet.start("worker"))
        drains.append(await trial.fleet.terminate(old))
        trial.faults += 1
    await producer.stop()
    await trial.settled(30)
    longest, bar = max(drains), DEADLINE_S + 2
    trial.figures["drain_max_s"] = round(longest, 2)
    trial.check(longest <= bar, f"a worker took {longest:.1f} s to end, over {bar:g} s")
    rows = await trial.rows("SELECT outcome, failure_class FROM delivery_attempts WHERE outcome <> 'delivered'")
    trial.check(not rows, f"{len(rows)} attempts failed by the shutdowns: {sorted({tuple(r) for r in rows})[:3]}")


_EXPIRED = Expect("homing_expired_leases_total")

SCENARIOS = (
    # No metric must move: a kill between two deliveries leaves no lease.
    Scenario("F05", "workers killed at random", killed_at_random, workers=3),
    Scenario("F06", "workers killed at each place", killed_at_places, (_EXPIRED,), workers=0, per_tenant=4),
    Scenario(
        "F07",
        "worker frozen and thawed",
        frozen,
        (_EXPIRED, Expect("homing_stale_rejected_total")),
        signature_age_s=5 + 15 + LEASE_S,  # a request may leave the frozen process when it thaws
    ),
    Scenario("F08", "rolling SIGTERM", rolling, (Expect("homing_deliveries_total"),)),
)
