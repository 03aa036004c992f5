"""The scenarios by name. Each plays on a fresh stage and answers one or more flat results."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from workers.bench.history import WEEKS, claim_ms, fill
from workers.bench.homing import ENDPOINTS, Homing, homing
from workers.bench.load import Say, System, drain, idle, steady
from workers.bench.peers import peer, plan_of
from workers.bench.stage import Stage, stage

#: Endpoints of the scenario with one that hangs: one of them is 1 %.
MANY = 100
#: A peer's part of the usual backlog: what is slower need not drain as much to show it.
PEERS_SHARE = 0.25
#: Seconds of a steady load before it is measured: connections are made, statements are prepared.
WARM_UP_S = 3.0

Result = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    events: int = 20_000
    workers: int = 2
    seconds: float = 20.0
    drain: int = 1_000_000
    history: int = 10_000_000


Play = Callable[[Size, str, Say], Coroutine[Any, Any, list[Result]]]


@dataclass(frozen=True)
class Scenario:
    """One scenario: what it is for, and how it is played."""

    what: str
    play: Play
    peers: bool = False
    """Whether the peers can play it too."""
    once: bool = False
    """Too long to be repeated: played once, whatever the number of runs."""
    against: tuple[str, str] | None = None
    """Another scenario's name and a figure: the ratio of this one's to that one's, within one run."""


def _backlog(
    *,
    delay_ms: float = 0,
    payload_bytes: int = 512,
    failing: int = 0,
    fan_out: int = 1,
    share: float = 1.0,
    workers: int = 0,
    relays: int = 1,
) -> Play:
    """Play a backlog: `failing` of ten endpoints refuse, each event goes to `fan_out` of them, `share` of the usual size."""

    async def play(size: Size, system: str, say: Say) -> list[Result]:
        part = share if system == "homing" else share * PEERS_SHARE
        events = round(size.events * part / fan_out) // ENDPOINTS * ENDPOINTS
        paths = [f"failing/{n}" if n < failing else str(n) for n in range(ENDPOINTS)]
        types = [f"bench.{n}" if fan_out == 1 else "bench.*" for n in range(ENDPOINTS)]
        with stage(delay_ms=delay_ms) as s:
            async with _system(s, system, workers or size.workers, paths, types) as played:
                deliveries = events * fan_out * (ENDPOINTS - failing) // ENDPOINTS
                return [await drain(s, played, events, deliveries, say, payload_bytes=payload_bytes, relays=relays)]

    return play


def _steady(rate: float, endpoints: int = ENDPOINTS, hanging: int = 0, longer: float = 1.0) -> Play:
    """Play a steady rate; the first `hanging` endpoints never answer, and only the others are measured."""

    async def play(size: Size, system: str, say: Say) -> list[Result]:
        paths = [f"hanging/{n}" if n < hanging else str(n) for n in range(endpoints)]
        with stage() as s:
            async with _system(s, system, size.workers, paths, [f"bench.{n}" for n in range(endpoints)]) as played:
                played.start_relay()
                measured = lambda n: n % endpoints >= hanging  # noqa: E731
                await steady(s, played, rate, WARM_UP_S, say, types=endpoints, measured=measured)
                return [await steady(s, played, rate, size.seconds * longer, say, types=endpoints, measured=measured)]

    return play


async def _drain_many(size: Size, system: str, say: Say) -> list[Result]:
    with stage() as s:
        async with _system(s, system, size.workers) as played:
            return [await drain(s, played, size.drain, size.drain, say)]


async def _idle(size: Size, system: str, say: Say) -> list[Result]:
    with stage() as s:
        async with _system(s, system, 1) as played:
            played.start_relay()
            await steady(s, played, 10, WARM_UP_S, say)
            return [await idle(s, played, size.seconds)]


async def _history(size: Size, system: str, say: Say) -> list[Result]:
    """Four results: no history, all of it, a steady load upon it, and the same while all weeks but this one are dropped."""
    results: list[Result] = []
    for rows in (0, size.history):
        with stage() as s:
            async with homing(s) as played:
                await played.make_endpoints(
                    [str(n) for n in range(ENDPOINTS)], [f"bench.{n}" for n in range(ENDPOINTS)]
                )
                if rows:
                    await fill(s, rows, say)
                claimed = await claim_ms(s)
                await played.rows.ignore_up_to_now()
                await played.start_workers(size.workers)
                result = await drain(s, played, size.events, size.events, say)
                results.append(result | {"scenario": f"history-{rows}", "claim_100_ms": claimed})
                if rows:
                    before = await steady(s, played, 50, size.seconds, say)
                    results.append(before | {"scenario": "retention-before"})
                    results.append(await _retention(s, played, size, say))
    results[1]["ratio"] = {
        "of": "history-0",
        "deliveries_per_s": round(results[1]["deliveries_per_s"] / results[0]["deliveries_per_s"], 3),
        "claim_100_ms": round(results[1]["claim_100_ms"] / results[0]["claim_100_ms"], 3),
    }
    results[3]["ratio"] = {"of": "retention-before", "p95_ms": round(results[3]["p95_ms"] / results[2]["p95_ms"], 3)}
    return results


async def _retention(s: Stage, played: Homing, size: Size, say: Say) -> Result:
    """All weeks but this one are dropped while events are committed and delivered."""

    async def drop() -> None:
        await asyncio.sleep(size.seconds / 4)
        command = [
            sys.executable,
            "-P",
            "-m",
            "workers.cli.main",
            "retention",
            "--keep",
            "1",
            "--execute",
            "--yes",
            "--json",
        ]
        process = await asyncio.create_subprocess_exec(
            *command, env=played.environment, stdout=asyncio.subprocess.PIPE, cwd=s.home
        )
        await process.communicate()
        if process.returncode:
            raise RuntimeError(f"homing retention ended with {process.returncode}")

    partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'deliveries'::regclass"
    before = await played.rows.fetch(partitions)
    dropping = asyncio.create_task(drop())
    result = await steady(s, played, 50, size.seconds, say)
    await dropping
    after = await played.rows.fetch(partitions)
    return result | {"scenario": "retention", "partitions_dropped": before[0][0] - after[0][0], "weeks": WEEKS}


@asynccontextmanager
async def _system(
    s: Stage, name: str, workers: int, paths: Sequence[str] | None = None, types: Sequence[str] | None = None
) -> AsyncIterator[System]:
    """Homing or a peer with its endpoints made and its workers ready."""
    made: AbstractAsyncContextManager[Any] = homing(s)
    if name != "homing":
        plan = plan_of(name)
        made = peer(s, name, plan.concurrency_waiting if s.delay_ms else plan.concurrency)
    async with made as system:
        await system.make_endpoints(
            paths or [str(n) for n in range(ENDPOINTS)], types or [f"bench.{n}" for n in range(ENDPOINTS)]
        )
        await system.start_workers(workers)
        yield system


SCENARIOS: dict[str, Scenario] = {
    "backlog": Scenario(
        "all is committed before the poller starts, then drained; instant receiver", _backlog(), peers=True
    ),
    "backlog-50ms": Scenario("the same, with a receiver that takes 50 ms", _backlog(delay_ms=50)),
    "backlog-240ms": Scenario("the same, with a receiver that takes 240 ms", _backlog(delay_ms=240), peers=True),
    "backlog-scaled": Scenario(
        "two pollers and twice the workers", _backlog(workers=4, relays=2), against=("backlog", "deliveries_per_s")
    ),
    "failing-10pct": Scenario(
        "one endpoint of ten answers 503; counted is what the others got",
        _backlog(failing=1),
        against=("backlog", "deliveries_per_s"),
    ),
    "fan-out-10": Scenario(
        "each event goes to ten endpoints", _backlog(fan_out=10), against=("backlog", "deliveries_per_s")
    ),
    "payload-8k": Scenario("payloads of 8 kB", _backlog(payload_bytes=8192), against=("backlog", "deliveries_per_s")),
    "payload-64k": Scenario(
        "payloads of 64 kB", _backlog(payload_bytes=65536, share=0.25), against=("backlog", "deliveries_per_s")
    ),
    "steady-50": Scenario("50 events a second, one a transaction", _steady(50), peers=True),
    "steady-200": Scenario("200 a second", _steady(200)),
    "steady-500": Scenario("500 a second", _steady(500)),
    "hanging-0": Scenario("100 a second to a hundred endpoints", _steady(100, MANY, longer=2)),
    "hanging-1pct": Scenario(
        "the same, and one of them never answers; measured are the others",
        _steady(100, MANY, hanging=1, longer=2),
        against=("hanging-0", "p95_ms"),
    ),
    "idle": Scenario("nothing to do, one poller and one worker", _idle),
    "history": Scenario(
        "none and ten million finished deliveries; then retention while delivering", _history, once=True
    ),
    "drain": Scenario("a million, and the workers' memory meanwhile", _drain_many, once=True),
}
