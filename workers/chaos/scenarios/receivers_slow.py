"""F24 to F26 and F33: receivers that hang, drip, or send more than anybody asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from app.backoff import RetryPolicy
from workers.chaos.load import TENANTS, Destination, choices
from workers.chaos.scenario import Expect, Scenario
from workers.chaos.stage import DEADLINE_S
from workers.chaos.trial import Trial

#: The matrix's tolerance for the end of an attempt at its deadline.
SLACK_S = 0.2
_DURATIONS = """
    SELECT p.name, a.outcome, a.failure_class, a.duration_ms / 1000.0 AS seconds
    FROM delivery_attempts a JOIN deliveries d ON d.id = a.delivery_id JOIN endpoints p ON p.id = d.endpoint_id
    WHERE p.name = ANY(%(names)s)
"""
_WAITS = """
    SELECT extract(epoch FROM a.started_at - o.made_at)::float8 AS wait_s
    FROM orders o JOIN deliveries d USING (event_id) JOIN delivery_attempts a ON a.delivery_id = d.id
    JOIN endpoints p ON p.id = d.endpoint_id
    WHERE a.number = 1 AND d.replays = 0 AND p.name <> ALL(%(but)s)
      AND o.made_at > to_timestamp(%(since)s) AND o.tenant_id <> ALL(%(but_tenants)s)
"""


async def hangs(trial: Trial) -> None:
    """One endpoint takes requests and never answers; all others must not notice."""
    bad = f"{TENANTS[0]}-0"
    producer = trial.produce(20)
    await trial.delivered(40)  # warm
    since = await trial.now()
    await asyncio.sleep(trial.times(5, 15))
    baseline = await p95_of_waits(trial, since, but=(bad,))
    trial.receiver.script(bad, "hang")
    since = await trial.now()
    await asyncio.sleep(trial.times(6, 20))
    with_fault = await p95_of_waits(trial, since, but=(bad,))
    await producer.stop()
    trial.receiver.well(bad)
    await trial.settled(40)
    ended = [row for row in await trial.rows(_DURATIONS, names=[bad]) if row.outcome == "transient"]
    trial.faults = len(ended)
    _check_deadline(trial, [float(row.seconds) for row in ended])
    trial.check({row.failure_class for row in ended} == {"timeout"}, "a hanging receiver is not classed as timeout")
    trial.figures |= {"others_p95_ms": round(with_fault * 1000), "others_p95_before_ms": round(baseline * 1000)}
    # A floor: below it the ratio would measure the machine's noise.
    bar = max(1.2 * baseline, baseline + 0.1)
    trial.check(
        with_fault <= bar, f"the others' p95 to the first attempt rose from {baseline:.3f} to {with_fault:.3f} s"
    )


async def p95_of_waits(trial: Trial, since: float, *, but: tuple[str, ...], but_tenants: tuple[str, ...] = ()) -> float:
    """From commit to first attempt, of the endpoints that behave."""
    rows = await trial.rows(_WAITS, since=since, but=list(but), but_tenants=list(but_tenants))
    waits = sorted(row.wait_s for row in rows)
    return float(waits[len(waits) * 95 // 100]) if waits else 99.0


def _check_deadline(trial: Trial, seconds: Iterable[float], *, exactly: bool = True) -> None:
    seconds = sorted(seconds)
    if not seconds:
        trial.check(False, "no attempt ended at the deadline")
        return
    trial.figures["longest_attempt_s"] = round(seconds[-1], 3)
    trial.check(seconds[-1] <= DEADLINE_S + SLACK_S, f"an attempt took {seconds[-1]:.3f} s")
    if exactly:
        trial.check(seconds[0] >= DEADLINE_S - SLACK_S, f"an attempt was given up after {seconds[0]:.3f} s")


#: Name -> what the receiver plays, and whether the attempt lasts until its deadline.
DRIPS = {
    "drip-body": (
        {
            "play": "endless",
            "head": "HTTP/1.1 500 No\r\ncontent-length: 100000\r\n\r\n",
            "piece": "a",
            "pause_s": 0.05,
            "code": 500,
        },
        True,
    ),
    "drip-headers": ({"play": "endless", "head": "HTTP/1.1 200 OK\r\nx-drip: ", "piece": "a", "pause_s": 0.05}, True),
    "interim": ({"play": "endless", "piece": "HTTP/1.1 102 Processing\r\n\r\n", "pause_s": 0.05}, False),
    "many-headers": (
        {"play": "endless", "head": "HTTP/1.1 200 OK\r\n", "piece": "x-one: 1\r\n", "repeat": 10_000},
        False,
    ),
    "long-header": ({"play": "endless", "head": "HTTP/1.1 200 OK\r\nx-long: ", "piece": "a", "repeat": 1 << 20}, False),
}


async def drips(trial: Trial) -> None:
    """Answers that never come to their end, one way and another."""
    await _add(trial, DRIPS)
    await trial.delivered(30)
    before = _memory(trial)
    for name, (script, _) in DRIPS.items():
        trial.receiver.script(name, **script, times=2)  # type: ignore[arg-type]
    for name in DRIPS:
        await trial.commit(TENANTS[0], f"odd.{name}", trial.times(3, 6))
    trial.check(await trial.settled(60), "not settled")
    after = _memory(trial)
    rows = await trial.rows(_DURATIONS, names=list(DRIPS))
    odd = [row for row in rows if row.outcome != "delivered"]
    trial.faults = len(odd)
    for name, (_, until_deadline) in DRIPS.items():
        seconds = [float(row.seconds) for row in odd if row.name == name]
        trial.check(bool(seconds), f"{name}: no attempt failed")
        if seconds and until_deadline:
            _check_deadline(trial, seconds)
    _check_deadline(trial, [float(row.seconds) for row in odd], exactly=False)
    _check_memory(trial, before, after, len(DRIPS))


#: Name -> what the receiver plays; each begins with a 200 and counts as delivered whatever follows.
FLOODS = {
    "big": {"play": "big", "size": 64 << 20},
    "chunks": {
        "play": "endless",
        "head": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "piece": "10000\r\n" + "c" * 65536 + "\r\n",
        "code": 200,
        "most": 64 << 20,
    },
    "bomb": {"play": "gzip_bomb", "size": 1 << 30},
    "not-gzip": {"play": "status", "code": 200, "headers": {"content-encoding": "gzip"}, "body": "this is not gzip"},
}


async def floods(trial: Trial) -> None:
    """More than anybody asked for: the status decides, little is read, less is kept."""
    await _add(trial, FLOODS)
    await trial.commit(TENANTS[0], "odd.warm", 30)
    await trial.delivered(30 * len(FLOODS))
    before = _memory(trial)
    for name, script in FLOODS.items():
        trial.receiver.script(name, **script)  # type: ignore[arg-type]
        await trial.commit(TENANTS[0], f"odd.{name}", trial.times(3, 8))
        trial.faults += trial.times(3, 8)
    trial.check(await trial.settled(60), "not settled")
    after = _memory(trial)
    rows = await trial.rows(
        "SELECT p.name, a.outcome, a.duration_ms, octet_length(a.response_excerpt) AS kept FROM delivery_attempts a "
        "JOIN deliveries d ON d.id = a.delivery_id JOIN endpoints p ON p.id = d.endpoint_id"
    )
    trial.check({row.outcome for row in rows} == {"delivered"}, "a 2xx with an absurd body did not count as delivered")
    kept = max(row.kept or 0 for row in rows)
    trial.figures |= {"kept_bytes_max": kept, "longest_attempt_ms": max(row.duration_ms for row in rows)}
    trial.check(kept <= 64 << 10, f"{kept} bytes of an answer were kept")
    _check_memory(trial, before, after, len(FLOODS))


async def _add(trial: Trial, names: Iterable[str]) -> None:
    policy = RetryPolicy(max_attempts=30, schedule_s=(0.2, 0.5, 1.0, 2.0), cap_s=4)
    await trial.add(*(Destination(name, TENANTS[0], (f"odd.{name}", "odd.warm"), policy=policy) for name in names))
    if not await trial.delivered(1, 0.1):
        await trial.commit(TENANTS[0], "odd.warm", 30)


def _memory(trial: Trial) -> dict[int, float]:
    from workers.chaos.measure import rss_mib

    return {child.pid: rss_mib(child.pid) for child in trial.fleet.living("worker")}


def _check_memory(trial: Trial, before: dict[int, float], after: dict[int, float], kinds: int) -> None:
    grown = max(after[pid] - before[pid] for pid in before)
    trial.figures["worker_grew_mib"] = round(grown, 1)
    trial.check(grown <= 8 * kinds, f"a worker grew by {grown:.0f} MiB, over 8 for each of {kinds} kinds")


async def one_tenant_hangs(trial: Trial) -> None:
    """A backlog of one tenant, all for a host that hangs; the other tenants must hardly notice."""
    bad = Destination("abyss", TENANTS[0], ("abyss",), policy=RetryPolicy(max_attempts=2, schedule_s=(0.2,), cap_s=4))
    await trial.add(bad)
    trial.receiver.script("abyss", "hang")
    others = trial.produce(10, of=choices(trial.scenario.per_tenant, TENANTS[1:]))
    await trial.delivered(20)
    since = await trial.now()
    trial.faults = trial.times(200, 1000)
    await trial.commit(TENANTS[0], "abyss", trial.faults)
    await asyncio.sleep(trial.times(10, 20))
    wait = await p95_of_waits(trial, since, but=("abyss",), but_tenants=(TENANTS[0],))
    await others.stop()
    trial.figures["others_p95_s"] = round(wait, 2)
    trial.check(wait <= 2, f"the other tenants' p95 to the first attempt was {wait:.1f} s, over 2 s")
    trial.receiver.well("abyss")


_FAILED = Expect("homing_attempts_total")

SCENARIOS = (
    Scenario("F24", "receiver never answers", hangs, (Expect("homing_retries_total"),)),
    Scenario("F25", "receiver drips", drips, (Expect("homing_retries_total"),), quiet=True),
    Scenario("F26", "receiver floods", floods, (_FAILED,), quiet=True),
    Scenario("F33", "one tenant's backlog hangs", one_tenant_hangs, (Expect("homing_retries_total"),), settle_s=180.0),
)
