"""The two ways to load a system: a backlog that is drained, and events at a steady rate. The same for Homing and its peers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from workers.bench.rows import Rows
from workers.bench.stage import Stage
from workers.bench.usage import memory_mib, usage

#: Seconds without any progress after which a run gives up.
STALLED_S = 60.0
#: Events of each type before a backlog: processes have started, connections are made, statements are prepared.
WARM_UP = 20
#: Seconds between two looks at the progress.
LOOK_S = 0.1

Say = Callable[[str], None]


class System(Protocol):
    """What is measured: it takes events from an outbox, and delivers them to the stage's receiver."""

    name: str
    rows: Rows

    def pids(self) -> dict[str, int]:
        """Its processes, by name; those that deliver are called `worker...`."""

    def start_relay(self, count: int = 1) -> None:
        """Start what takes events from the outbox."""


async def drain(
    stage: Stage,
    system: System,
    events: int,
    deliveries: int,
    say: Say,
    *,
    payload_bytes: int = 512,
    types: int = 10,
    relays: int = 1,
) -> dict[str, Any]:
    """Commit a backlog at once, and wait until all is recorded; workers run already, relays are started and warmed up here.

    The clock runs from the first request received to the commit of the last result.

    Args:
        events: how many are committed.
        deliveries: how many of their deliveries will succeed.
    """
    system.start_relay(relays)
    warm_up = WARM_UP * types
    await system.rows.many(warm_up, 512, types)
    await _until_recorded(stage, system, warm_up * deliveries // events)
    received = stage.receiver.count
    recorded_before, _ = await system.rows.recorded()
    before = usage(stage, system.rows.database, system.pids())
    await system.rows.many(events, payload_bytes, types)
    memory: list[tuple[int, float]] = []
    began: float | None = None
    progress, progress_at = 0, time.monotonic()
    while True:
        await asyncio.sleep(LOOK_S if began else LOOK_S / 10)
        now, done = time.monotonic(), stage.receiver.count - received
        if done and began is None:
            began = time.time()
        if done > progress:
            progress, progress_at = done, now
            memory.append((done, workers_memory(system)))
            say(f"{done} of {deliveries} received")
        if done >= deliveries:
            recorded, ended = await system.rows.recorded()
            if recorded - recorded_before >= deliveries:
                break
        if now - progress_at > STALLED_S:
            raise TimeoutError(f"no progress for {STALLED_S:g} s at {done} of {deliveries} deliveries")
    assert began is not None
    seconds = ended - began
    used = usage(stage, system.rows.database, system.pids()).since(before)
    warm = next(mib for done, mib in memory if done >= deliveries / 10)
    return {
        "deliveries": deliveries,
        "seconds": round(seconds, 3),
        "deliveries_per_s": round(deliveries / seconds, 1),
        "p50_ms": None,
        "p95_ms": None,
        "p99_ms": None,
        **used.per_delivery(deliveries),
        "rss_mib_max": round(max_memory(system), 1),
        "rss_mib_growth": round(memory[-1][1] - warm, 1),
    }


async def _until_recorded(stage: Stage, system: System, deliveries: int) -> None:
    deadline = time.monotonic() + STALLED_S
    while (await system.rows.recorded())[0] < deliveries:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{system.name} has not delivered {deliveries} events within {STALLED_S:g} s")
        await asyncio.sleep(LOOK_S)


async def steady(
    stage: Stage,
    system: System,
    rate: float,
    seconds: float,
    say: Say,
    *,
    types: int = 10,
    measured: Callable[[int], bool] = lambda n: True,
) -> dict[str, Any]:
    """Commit one event a transaction at a fixed rate, while relay and workers run; how long until received and recorded.

    Args:
        rate: events a second.
        types: event types in turn; the n-th event has type n modulo this.
        measured: which events count, by number; the others are load only and need not arrive.
    """
    received = stage.receiver.count
    before = usage(stage, system.rows.database, system.pids())
    committed: dict[str, float] = {}
    began = time.monotonic()
    tasks = []

    async def commit(n: int) -> None:
        name, at = await system.rows.one(n, types)
        if measured(n):
            committed[name] = at

    for n in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + n / rate - time.monotonic()))
        tasks.append(asyncio.create_task(commit(n)))
        if n % max(1, int(rate)) == 0:
            say(f"{n / rate:.0f} of {seconds:g} s")
    await asyncio.gather(*tasks)
    took = time.monotonic() - began
    deadline = time.monotonic() + STALLED_S
    while stage.receiver.count - received < len(committed):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(committed) + received - stage.receiver.count} events have not arrived")
        await asyncio.sleep(LOOK_S)
    used = usage(stage, system.rows.database, system.pids()).since(before)
    recorded = await system.rows.recorded_at()
    while not committed.keys() <= recorded.keys():
        if time.monotonic() > deadline:
            raise TimeoutError("what has arrived is not recorded")
        await asyncio.sleep(LOOK_S)
        recorded = await system.rows.recorded_at()
    arrived = await asyncio.to_thread(stage.receiver.so_far)
    return {
        "deliveries": len(committed),
        "seconds": round(took, 3),
        "deliveries_per_s": round(len(tasks) / took, 1),
        **_quantiles("", [arrived[name] - at for name, at in committed.items()]),
        **_quantiles("recorded_", [recorded[name] - at for name, at in committed.items()]),
        **used.per_delivery(len(tasks)),
        "rss_mib_max": round(max_memory(system), 1),
    }


async def idle(stage: Stage, system: System, seconds: float) -> dict[str, Any]:
    """Nothing to do for a while: what that costs."""
    before = usage(stage, system.rows.database, system.pids())
    began = time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - began
    used = usage(stage, system.rows.database, system.pids()).since(before)
    percent = {name: round(100 * value / took, 2) for name, value in used.cpu_s.items()}
    return {
        "deliveries": 0,
        "seconds": round(took, 3),
        "deliveries_per_s": 0.0,
        "p50_ms": None,
        "p95_ms": None,
        "p99_ms": None,
        "cpu_us_per_delivery": {},
        "cpu_percent": percent,
        "queries_per_s": round(used.round_trips / took, 2),
        "redis_commands_per_s": round(used.redis_commands / took, 2),
        "rss_mib_max": round(max_memory(system), 1),
    }


def workers_memory(system: System) -> float:
    """What the largest worker holds now, in MiB."""
    return max(memory_mib(pid, "VmRSS") for name, pid in system.pids().items() if name.startswith("worker"))


def max_memory(system: System) -> float:
    """The most that a worker has held at once, in MiB."""
    return max(memory_mib(pid) for name, pid in system.pids().items() if name.startswith("worker"))


def _quantiles(prefix: str, seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles by the nearest rank, in milliseconds."""
    ordered = sorted(seconds)
    return {
        f"{prefix}p{p}_ms": round(ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)] * 1000, 1)
        for p in (50, 95, 99)
    }
