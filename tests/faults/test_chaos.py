"""`homing chaos --smoke` for real: every fault injected, nothing lost, nothing sent twice without saying so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workers.chaos.matrix import SCENARIOS

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-P", "-m", "workers.cli.main", "chaos"]
SMOKE = ["F02", "F05", "F06", "F10", "F16", "F24", "F26"]


def chaos(*arguments: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("HOMING_")}
    environment |= {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "COLUMNS": "200"} | settings
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


@pytest.mark.timeout(420)
def test_smoke_loses_nothing_and_flags_every_duplicate(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    done = chaos("--smoke", "--json", "--seed", "7", "--report", str(report), folder=tmp_path)
    run: dict[str, Any] = json.loads(done.stdout)
    explained = done.stderr[-4000:]
    assert (run["seed"], [s["id"] for s in run["scenarios"]]) == (7, SMOKE)
    for scenario in run["scenarios"]:
        assert scenario["skipped"] is None, explained
        assert scenario["passed"], f"{scenario['problems']}\n{explained}"
        assert scenario["problems"] == []
        assert scenario["faults"] > 0
        assert scenario["events"] > 0
        assert scenario["deliveries"] >= scenario["events"]
        assert (scenario["lost"], scenario["phantom"]) == (0, 0)
        assert scenario["duplicates"] == scenario["duplicates_flagged"]
    without_kills = {"F02", "F10", "F24", "F26"}
    assert all(s["duplicates"] == 0 for s in run["scenarios"] if s["id"] in without_kills)
    recovered = {s["id"]: s["recovery_max_s"] for s in run["scenarios"]}
    assert all(recovered[name] is not None and recovered[name] <= 6 for name in ("F05", "F06"))
    assert run["passed"] is True
    assert done.returncode == 0
    assert "F26" in report.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_an_unknown_fault_is_a_usage_error(tmp_path: Path) -> None:
    done = chaos("--only", "F99", folder=tmp_path)
    assert done.returncode == 2
    assert "F99" in done.stderr


def test_every_fault_has_its_row_in_the_published_run_and_no_other_has_one() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| F")]
    assert [(row[0], row[1]) for row in rows] == [(name, scenario.fault) for name, scenario in SCENARIOS.items()]
