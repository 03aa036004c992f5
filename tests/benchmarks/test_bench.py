"""The benchmark: what it prints, that its ratios and medians are right, and that its receiver does what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.errors import InvalidInput
from workers.bench.command import bench
from workers.bench.plots import write_plots
from workers.bench.results import medians, sentences, with_ratios
from workers.bench.scenarios import SCENARIOS
from workers.bench.stage import stage


def made(scenario: str, speed: float, system: str = "homing", p50: float | None = None) -> dict[str, Any]:
    latency = None if p50 is None else {"p50_ms": p50, "p95_ms": p50 * 2, "p99_ms": p50 * 3}
    return {
        "scenario": scenario,
        "system": system,
        "deliveries": 100,
        "seconds": round(100 / speed, 3),
        "deliveries_per_s": speed,
        "p50_ms": None,
        "p95_ms": None,
        "p99_ms": None,
        "cpu_us_per_delivery": {"worker-1": 10},
        "round_trips_per_delivery": 0.1,
        "wal_bytes_per_delivery": 1000,
        "redis_commands_per_delivery": 0.1,
        "redis_operations_per_delivery": 0.4,
        "rss_mib_max": 100.0,
    } | (latency or {})


def test_real_run_prints_every_promised_figure_as_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "workers.cli.main", "bench", "backlog", "steady-50", "--json", "--runs", "1"),
            *("--events", "1000", "--seconds", "5", "--plot", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    backlog, steady = map(json.loads, done.stdout.splitlines())
    assert (backlog["scenario"], backlog["deliveries"], steady["deliveries"]) == ("backlog", 1000, 250)
    for result in (backlog, steady):
        assert result["deliveries_per_s"] > 0
        assert set(result["cpu_us_per_delivery"]) == {
            "worker-1",
            "worker-2",
            "poller",
            "postgres",
            "valkey",
            "receiver",
        }
        assert result["rss_mib_max"] > 10
        assert result["wal_bytes_per_delivery"] > 100
    assert backlog["p50_ms"] is None
    assert 0 < steady["p50_ms"] <= steady["p95_ms"] <= steady["p99_ms"]
    assert steady["recorded_p50_ms"] > steady["p50_ms"]
    # Chunks of many deliveries: what each of them costs on the way does not grow with their number.
    assert 0 < backlog["round_trips_per_delivery"] <= 0.2
    assert 0 < backlog["redis_commands_per_delivery"] <= 0.5
    assert sorted(file.name for file in tmp_path.glob("*.svg")) == ["latency.svg", "throughput.svg"]


def test_unknown_scenario_and_unknown_peer_are_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="'nonsense' is not one of backlog"):
        bench(["nonsense"])
    with pytest.raises(InvalidInput, match="'nonsense' is not one of bullmq"):
        bench(["backlog"], peers="nonsense")


def test_ratio_is_taken_within_a_run_and_the_median_over_runs() -> None:
    runs = [
        with_ratios([made("backlog", 2000 * n), made("failing-10pct", 1800 * n), made("backlog", 500, "celery")])
        for n in (1, 2, 3)
    ]
    ours, failing, celery = medians(runs)
    assert (ours["deliveries_per_s"], ours["runs"]) == (4000, 3)
    assert failing["ratio"] == {"of": "backlog", "deliveries_per_s": 0.9}
    assert celery["homing_is"] == {"deliveries_per_s": 8}


def test_peers_latency_is_compared_percentile_by_percentile() -> None:
    _, other = with_ratios([made("steady-50", 50, p50=10), made("steady-50", 50, "bullmq", p50=40)])
    assert other["homing_is"] == {"p50_ms": 0.25, "p95_ms": 0.25, "p99_ms": 0.25}
    assert "Homing's p50_ms is 0.25 times that" in sentences(other | {"runs": 1})


def test_every_scenario_is_measured_against_one_that_exists() -> None:
    assert {s.against[0] for s in SCENARIOS.values() if s.against} <= set(SCENARIOS)


def test_plots_need_nothing_from_elsewhere(tmp_path: Path) -> None:
    results = [made("backlog", 3000), made("backlog", 300, "celery"), made("steady-50", 50, p50=10)]
    files = write_plots([result | {"runs": 1} for result in results], tmp_path / "new")
    assert [file.name for file in files] == ["throughput.svg", "latency.svg"]
    for file in files:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
        assert "homing" in text
        assert "http" not in text


def test_receiver_answers_refuses_and_counts_only_what_it_answers() -> None:
    with stage() as s:
        url = f"http://127.0.0.1:{s.receiver.port}"
        assert httpx.post(f"{url}/0", content=b"{}", headers={"webhook-id": "a"}).status_code == 200
        assert httpx.post(f"{url}/failing/0", content=b"{}", headers={"webhook-id": "b"}).status_code == 503
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/hanging/0", content=b"{}", headers={"webhook-id": "c"}, timeout=0.5)
        assert s.receiver.count == 1
        assert list(s.receiver.so_far()) == ["a"]
