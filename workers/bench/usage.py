"""What is used: CPU and memory of processes, read from /proc (Linux), and what the two servers were asked.

Elsewhere than on Linux CPU and memory are 0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis

from workers.bench.stage import BENCH_ROLE, Stage

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass(frozen=True)
class Usage:
    """Totals up to a moment; subtract two for what happened between them."""

    cpu_s: dict[str, float]
    """User and system time by process, children included."""
    round_trips: int
    """Statements sent to PostgreSQL, BEGIN and COMMIT included, without the benchmark's own."""
    wal_bytes: int
    """Write-ahead log, whoever wrote it."""
    redis_commands: int
    """Commands sent by clients, by what the server has read from them: a script is one, and so is a pipeline."""
    redis_operations: int
    """Commands that the server has carried out, those inside scripts included."""

    def since(self, before: Usage) -> Usage:
        """What was used between two snapshots; a process that has ended in between counts 0."""
        return Usage(
            {name: max(0.0, value - before.cpu_s.get(name, 0.0)) for name, value in self.cpu_s.items()},
            self.round_trips - before.round_trips,
            self.wal_bytes - before.wal_bytes,
            self.redis_commands - before.redis_commands,
            self.redis_operations - before.redis_operations,
        )

    def per_delivery(self, deliveries: int) -> dict[str, Any]:
        """The fields of a result: CPU in microseconds, round trips, log and commands, each per delivery."""
        return {
            "cpu_us_per_delivery": {name: round(value / deliveries * 1e6) for name, value in self.cpu_s.items()},
            "round_trips_per_delivery": round(self.round_trips / deliveries, 3),
            "wal_bytes_per_delivery": round(self.wal_bytes / deliveries),
            "redis_commands_per_delivery": round(self.redis_commands / deliveries, 3),
            "redis_operations_per_delivery": round(self.redis_operations / deliveries, 3),
        }


def usage(stage: Stage, database: str, pids: Mapping[str, int]) -> Usage:
    """What the stage and a system's processes have used until now. `database` is the system's."""
    with psycopg.connect(stage.bench_url(), autocommit=True) as connection:
        row = connection.execute(
            "SELECT coalesce(sum(s.calls), 0)::bigint, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint "
            "FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid "
            "WHERE d.datname = %s AND s.userid <> %s::regrole",
            (database, BENCH_ROLE),
        ).fetchone()
        assert row is not None
    client = redis.Redis.from_url(stage.valkey.url)
    asked = client.info("stats")
    client.close()
    everybody = dict(pids) | stage.pids
    return Usage(
        {name: cpu_seconds(pid) for name, pid in everybody.items()},
        row[0],
        row[1],
        asked["total_reads_processed"],
        asked["total_commands_processed"],
    )


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all that it has started, those that have ended included; 0 when it is gone."""
    times = {own_pid: seconds for own_pid, _, seconds in _stats()}
    return sum(times.get(one, 0.0) for one in _with_descendants(pid))


def memory_mib(pid: int, field: str = "VmHWM") -> float:
    """Memory of the largest of a process and its descendants in MiB; 0 when unknown.

    Args:
        field: the most that it has held at once, or what it holds now (`VmRSS`).
    """
    return max(_memory_mib(one, field) for one in _with_descendants(pid))


def _with_descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for own_pid, parent, _ in _stats():
        children.setdefault(parent, []).append(own_pid)
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def _memory_mib(pid: int, field: str) -> float:
    try:
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def _stats() -> list[tuple[int, int, float]]:
    found = []
    for folder in _PROC.iterdir() if _PROC.exists() else []:
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found.append((int(folder.name), int(fields[1]), sum(map(int, fields[11:15])) / _TICKS))
    return found
