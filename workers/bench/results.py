"""What runs come to: medians, ratios within a run, and sentences for people. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from workers.bench.scenarios import SCENARIOS, Result

Run = list[Result]


def with_ratios(run: Run) -> Run:
    """Add to each result what it is to the one that it is measured against, and to a peer's how often Homing is better."""
    found = {(result["system"], result["scenario"]): result for result in run}
    return [result | _ratio(result, found) for result in run]


def medians(runs: Sequence[Run]) -> Run:
    """One result for each scenario and system, in order of first appearance: the median of every number, place by place."""
    places: dict[tuple[str, str], list[Result]] = {}
    for run in runs:
        for result in run:
            places.setdefault((result["scenario"], result["system"]), []).append(result)
    return [_middle(results) | {"runs": len(results)} for results in places.values()]


def sentences(result: Result) -> str:
    """A result for a person, in a few lines."""
    who = "" if result["system"] == "homing" else f" ({result['system']})"
    lines = [f"{result['scenario']}{who}: {_speed(result)}, median of {result['runs']}"]
    for prefix, until in (("", "receive"), ("recorded_", "record")):
        if result.get(f"{prefix}p50_ms") is not None:
            quantiles = ", ".join(f"p{p} {result[f'{prefix}p{p}_ms']} ms" for p in (50, 95, 99))
            lines.append(f"commit to {until} {quantiles}")
    if result["cpu_us_per_delivery"]:
        cpu = ", ".join(f"{name} {value}" for name, value in result["cpu_us_per_delivery"].items())
        lines.append(f"CPU per delivery, µs: {cpu}")
        lines.append(
            f"per delivery: {result['round_trips_per_delivery']} round trips, {result['wal_bytes_per_delivery']} bytes of "
            f"log, {result['redis_commands_per_delivery']} Redis commands ({result['redis_operations_per_delivery']} with those in scripts)"
        )
    if "cpu_percent" in result:
        cpu = ", ".join(f"{name} {value}" for name, value in result["cpu_percent"].items())
        lines.append(
            f"CPU, % of a core: {cpu}; {result['queries_per_s']} queries/s, {result['redis_commands_per_s']} Redis commands/s"
        )
    grown = f", {result['rss_mib_growth']:+} MiB since a tenth was done" if "rss_mib_growth" in result else ""
    lines.append(f"largest worker: {result['rss_mib_max']} MiB at most{grown}")
    if "claim_100_ms" in result:
        lines.append(f"claiming 100 due deliveries: {result['claim_100_ms']} ms")
    if "partitions_dropped" in result:
        lines.append(f"partitions dropped meanwhile: {result['partitions_dropped']}")
    for name, ratio in result.get("ratio", {}).items():
        if name != "of":
            lines.append(f"{name.removesuffix('_ms')} is {ratio} times that of {result['ratio']['of']}")
    if "homing_is" in result:
        lines.append(", ".join(f"Homing's {name} is {ratio} times that" for name, ratio in result["homing_is"].items()))
    return "\n  ".join(lines)


def _speed(result: Result) -> str:
    if not result["deliveries"]:
        return f"{result['seconds']:.0f} s"
    return f"{result['deliveries_per_s']} deliveries/s ({result['deliveries']} in {result['seconds']} s)"


def _ratio(result: Result, found: Mapping[tuple[str, str], Result]) -> Result:
    name, system = result["scenario"], result["system"]
    if system != "homing":
        ours = found.get(("homing", name))
        if ours is None:
            return {}
        figures = ["deliveries_per_s"] if result["p50_ms"] is None else ["p50_ms", "p95_ms", "p99_ms"]
        return {"homing_is": {figure: _divided(ours[figure], result[figure]) for figure in figures}}
    against = SCENARIOS[name].against if name in SCENARIOS else None
    if against is None or (system, against[0]) not in found:
        return {}
    other, figure = against
    return {"ratio": {"of": other, figure: _divided(result[figure], found[system, other][figure])}}


def _divided(one: float, other: float) -> float:
    return round(one / other, 3) if other else 0.0


def _middle(results: list[Any]) -> Any:
    first = results[0]
    if isinstance(first, dict):
        return {key: _middle([result[key] for result in results if key in result]) for key in first}
    if isinstance(first, int | float):
        middle = statistics.median(results)
        return round(middle) if isinstance(first, int) else round(middle, 3)
    return first
