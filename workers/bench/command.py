"""`homing bench`: run scenarios several times, Homing and its peers in turn, and print the median of each figure."""

from __future__ import annotations

import asyncio
import json as json_module
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from app.errors import InvalidInput
from workers.bench.peers import PeerNotInstalled, install, known
from workers.bench.results import Run, medians, sentences, with_ratios
from workers.bench.scenarios import SCENARIOS, Scenario, Size


def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[SCENARIO]...", help="Which; all by default.")] = None,
    peers: Annotated[str, typer.Option(help="Others to measure in the same run: names with commas, or all.")] = "",
    events: Annotated[int, typer.Option(min=100, help="Events of a backlog.")] = Size.events,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = Size.workers,
    seconds: Annotated[float, typer.Option(min=5, help="How long a steady load is measured.")] = Size.seconds,
    drain: Annotated[int, typer.Option(min=1000, help="Events of the long drain.")] = Size.drain,
    history: Annotated[int, typer.Option(min=1000, help="Finished deliveries of the history.")] = Size.history,
    runs: Annotated[int, typer.Option(min=1, max=20, help="Runs; medians are printed. The longest have one.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per scenario and line.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="DIR", help="Write plots (SVG) into this folder.")] = None,
) -> None:
    """Measure throughput and latency on real servers of its own, with fsync on, everything on this machine."""
    chosen = _with_what_they_are_measured_against(names or list(SCENARIOS))
    others = _peers(peers)
    size = replace(Size(), events=events, workers=workers, seconds=seconds, drain=drain, history=history)
    done: list[Run] = []
    for number in range(1, runs + 1):
        plays = [(name, scenario) for name, scenario in chosen.items() if number == 1 or not scenario.once]
        done.append(with_ratios(_run(plays, others, size, f"run {number} of {runs}")))
    results = medians(done)
    for result in results:
        print(json_module.dumps(result) if json else sentences(result))
    if plot is not None:
        from workers.bench.plots import write_plots

        for file in write_plots(results, plot):
            print(file, file=sys.stderr)


def _run(plays: list[tuple[str, Scenario]], peers: list[str], size: Size, what: str) -> Run:
    results: Run = []
    for name, scenario in plays:
        for system in ["homing", *(peers if scenario.peers else [])]:

            def say(text: str, where: str = f"{what}: {name}, {system}") -> None:
                if sys.stderr.isatty():
                    print(f"\r\x1b[K{where}: {text}", end="", file=sys.stderr, flush=True)

            say("starting")
            played = asyncio.run(scenario.play(size, system, say))
            results += [{"scenario": name, "system": system} | result for result in played]
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return results


def _with_what_they_are_measured_against(names: list[str]) -> dict[str, Scenario]:
    """The chosen scenarios and, before them, those that their ratios need."""
    chosen: dict[str, Scenario] = {}
    for name in names:
        if name not in SCENARIOS:
            raise InvalidInput(f"scenario {name!r} is not one of {', '.join(SCENARIOS)}")
        if (against := SCENARIOS[name].against) is not None:
            chosen.setdefault(against[0], SCENARIOS[against[0]])
        chosen[name] = SCENARIOS[name]
    return chosen


def _peers(wanted: str) -> list[str]:
    """Names of peers, installed and ready; one that cannot be installed is named and left out."""
    if not wanted:
        return []
    names = known() if wanted == "all" else wanted.split(",")
    ready = []
    for name in names:
        try:
            install(name)
        except PeerNotInstalled as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
        else:
            ready.append(name)
    return ready
