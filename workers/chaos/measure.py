"""What a process shows of itself: its metrics, its memory, its open descriptors. Linux; elsewhere only its metrics."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

#: Seconds after which a process that does not answer is left out of a sample.
SCRAPE_LIMIT_S = 1.0


@dataclass(frozen=True)
class Sample:
    """One moment of one process."""

    metrics: dict[str, float]
    rss_mib: float
    descriptors: int


async def sample(pid: int, port: int | None) -> Sample | None:
    """The figures of a process now; None when it does not answer."""
    return await asyncio.to_thread(_sample, pid, port)


def _sample(pid: int, port: int | None) -> Sample | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SCRAPE_LIMIT_S) as answer:
            text = answer.read().decode()
        return Sample(parse(text), rss_mib(pid), descriptors(pid))
    except OSError:
        return None


def parse(text: str) -> dict[str, float]:
    """Prometheus' text format, as sums over all labels of each name."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def rss_mib(pid: int) -> float:
    """Resident memory; 0 when it cannot be told."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    except OSError:
        return 0.0


def descriptors(pid: int) -> int:
    """Open file descriptors; 0 when it cannot be told."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0


def children_of(pid: int) -> list[int]:
    """Pids of a process's own children."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(folder.name))
    return found
