"""`homing chaos`: break things on purpose, and count what was lost."""

from __future__ import annotations

import asyncio
import json as json_text
import secrets
import sys
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from app.errors import InvalidInput

if TYPE_CHECKING:
    from workers.chaos.run import Result


def chaos(
    smoke: Annotated[
        bool, typer.Option("--smoke", help="The seven most telling faults, in 3 minutes (default).")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Every fault, in 25 minutes.")] = False,
    only: Annotated[str, typer.Option("--only", metavar="F05,F10", help="These faults.")] = "",
    seed: Annotated[int | None, typer.Option("--seed", help="Repeats the random choices of a run.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE.md", help="Also write Markdown.")] = None,
) -> None:
    """Run Homing's processes on servers of their own, break things on purpose, and prove that nothing is lost.

    Without an option it is the smoke run. `--only` plays the faults that it names as thoroughly as `--full` does, unless
    `--smoke` is given too. Faults that cannot be injected here are skipped by name and never counted as passed.
    """
    from workers.chaos.matrix import SCENARIOS, SMOKE
    from workers.chaos.report import as_json, as_markdown, passed, print_table

    if smoke and full:
        raise InvalidInput("--smoke and --full exclude each other")
    names = [name.strip().upper() for name in only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise InvalidInput(f"--only: {unknown[0]!r} is not one of {', '.join(SCENARIOS)}")
    thorough = full or (bool(names) and not smoke)
    chosen = names or (list(SCENARIOS) if full else list(SMOKE))
    number = secrets.randbelow(1_000_000) if seed is None else seed
    print(f"seed {number}", file=sys.stderr)
    began = monotonic()
    results = asyncio.run(_play(chosen, number, thorough))
    seconds = monotonic() - began
    if json:
        print(json_text.dumps(as_json(results, seed=number, seconds=seconds)))
    else:
        print_table(results, seed=number, seconds=seconds)
    if report is not None:
        mode = f"--only {','.join(names)}" if names else ("--full" if full else "--smoke")
        text = as_markdown(results, seed=number, mode=mode, seconds=seconds)
        report.write_text(text, encoding="utf-8")
    if not passed(results):
        raise typer.Exit(1)


async def _play(chosen: list[str], seed: int, thorough: bool) -> list[Result]:
    from workers.chaos.matrix import SCENARIOS
    from workers.chaos.run import play
    from workers.chaos.stage import stage

    results = []
    with stage() as here:
        for name in chosen:
            scenario = SCENARIOS[name]
            print(f"{name} {scenario.fault} ...", file=sys.stderr, flush=True)
            result = await play(here, scenario, seed=seed, full=thorough)
            word = "skipped" if result.skipped else ("passed" if result.passed else "FAILED")
            print(f"{name} {word} in {result.seconds:.0f} s {result.figures}", file=sys.stderr, flush=True)
            for problem in result.problems:
                print(f"    {problem}", file=sys.stderr, flush=True)
            results.append(result)
    return results
