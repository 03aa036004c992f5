"""`homing bench`: run scenarios several times and print the median of each figure."""

from __future__ import annotations

import asyncio
import json as json_module
import statistics
import sys
from typing import Annotated, Any

import typer

from app.errors import InvalidInput
from workers.bench.scenarios import Scenario, scenarios


def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[SCENARIO]...", help="Which; all by default.")] = None,
    events: Annotated[int, typer.Option(min=100, help="Events of a backlog.")] = 20_000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 2,
    runs: Annotated[int, typer.Option(min=1, max=20, help="Runs of each scenario; the median is printed.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per scenario and line.")] = False,
) -> None:
    """Measure throughput and latency on real servers of its own, with fsync on, everything on this machine."""
    known = scenarios(events, workers)
    chosen = names or list(known)
    for name in chosen:
        if name not in known:
            raise InvalidInput(f"scenario {name!r} is not one of {', '.join(known)}")
    for name in chosen:
        result = asyncio.run(_median(known[name], runs))
        print(json_module.dumps(result) if json else _sentence(result))


async def _median(scenario: Scenario, runs: int) -> dict[str, Any]:
    results = []
    for number in range(1, runs + 1):

        def say(text: str, number: int = number) -> None:
            if sys.stderr.isatty():
                print(f"\r\x1b[Krun {number} of {runs}: {text}", end="", file=sys.stderr, flush=True)

        results.append(await scenario(say))
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    combined: dict[str, Any] = _combine(results)
    return combined | {"runs": runs}


def _combine(results: list[Any]) -> Any:
    """The median of every number, place by place."""
    first = results[0]
    if isinstance(first, dict):
        return {key: _combine([result[key] for result in results]) for key in first}
    if isinstance(first, int | float):
        middle = statistics.median(results)
        return round(middle) if isinstance(first, int) else round(middle, 3)
    return first


def _sentence(result: dict[str, Any]) -> str:
    cpu = ", ".join(f"{name} {value}" for name, value in result["cpu_us_per_delivery"].items())
    latency = ""
    if result["p50_ms"] is not None:
        latency = (
            f"  commit to receive p50 {result['p50_ms']} ms, p95 {result['p95_ms']} ms, p99 {result['p99_ms']} ms\n"
        )
    return (
        f"{result['scenario']}: {result['deliveries_per_s']} deliveries/s "
        f"({result['deliveries']} in {result['seconds']} s, median of {result['runs']})\n{latency}"
        f"  CPU per delivery, µs: {cpu}\n  worker memory: {result['rss_mib_max']} MiB at most"
    )
