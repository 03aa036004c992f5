"""What processes have used so far, read from /proc (Linux); elsewhere the figures are left out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all its children, those that have ended included; 0 when it is gone."""
    total = 0.0
    for stat in _stats():
        own_pid, parent, own, ended_children = stat
        if own_pid == pid:
            total += own + ended_children
        elif parent == pid:
            total += own
    return total


def rss_max_mib(pid: int) -> float:
    """Most memory that a process has held at once, in MiB; 0 when it cannot be told."""
    try:
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def used_since(before: Mapping[str, float], pids: Mapping[str, int]) -> dict[str, float]:
    """CPU seconds by name since `before` was taken with `cpu_of`."""
    return {name: cpu_seconds(pid) - before.get(name, 0.0) for name, pid in pids.items()}


def cpu_of(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU seconds by name, up to now."""
    return {name: cpu_seconds(pid) for name, pid in pids.items()}


def _stats() -> list[tuple[int, int, float, float]]:
    found = []
    for folder in _PROC.iterdir() if _PROC.exists() else []:
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        own = (int(fields[11]) + int(fields[12])) / _TICKS
        ended = (int(fields[13]) + int(fields[14])) / _TICKS
        found.append((int(folder.name), int(fields[1]), own, ended))
    return found
