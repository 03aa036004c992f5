"""Homing's own processes during a scenario: started with settings of their own, killed, stopped, continued, measured."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from app.embedded.files import log_since, open_log
from app.errors import HomingError
from workers.chaos.measure import Sample, sample
from workers.processes import PARENT_PIPE

ROOT = Path(__file__).parents[2]
#: Seconds that a process may take until it says that it has started.
START_LIMIT_S = 30.0
#: Seconds between two samples of metrics, memory and descriptors.
SAMPLE_EVERY_S = 0.7
#: A process's memory and descriptors are compared with what it had once it was warm: its pools are filled by work.
WARM_AFTER = {"worker": ("homing_attempts_total", 60), "poller": ("homing_published_total", 60)}


class ProcessFailed(HomingError):
    """A process of the suite ended, or did not start, against the scenario's intention."""


@dataclass
class Child:
    """One process of Homing's."""

    name: str
    kind: str
    popen: subprocess.Popen[bytes]
    log: Path
    log_begins: int
    expected_to_die: bool
    started_at: float = field(default_factory=monotonic)
    port: int | None = None
    first: Sample | None = None
    last: Sample | None = None

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def owner(self) -> str:
        """The name that its leases carry."""
        return f"{self.kind}@{socket.gethostname()}:{self.pid}"

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def said(self) -> str:
        """What it logged."""
        with self.log.open("rb") as file:
            file.seek(self.log_begins)
            return file.read().decode("utf-8", "replace")


class Fleet:
    """All of a scenario's processes. Used from one event loop; `close` ends what is left."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.environment = dict(environment)
        self._folder = folder
        self._numbers: dict[str, int] = {}
        self.children: list[Child] = []
        #: Lowest and highest sum over all processes that each metric was seen at.
        self._lowest: dict[str, float] = {}
        self._totals: dict[tuple[int, str], float] = {}

    def start(
        self,
        kind: str,
        settings: Mapping[str, str] | None = None,
        *,
        program: Sequence[str] = ("-m", "workers.cli.main"),
        wrapper: Sequence[str] = (),
        dies: bool = False,
    ) -> Child:
        """Start a poller, a worker or an API.

        Args:
            kind: `poller`, `worker` or `api`.
            settings: environment variables besides the fleet's.
            program: what Python runs, when it is not the command itself.
            wrapper: a command that executes the rest of its arguments.
            dies: whether the scenario means it to die by itself.
        """
        self._numbers[kind] = self._numbers.get(kind, 0) + 1
        name = f"{kind}-{self._numbers[kind]}"
        path = self._folder / f"{name}.log"
        output = open_log(path)
        environment = self.environment | dict(settings or {})
        environment |= {PARENT_PIPE: "1", "PYTHONPATH": str(ROOT)}
        try:
            popen = subprocess.Popen(  # noqa: S603
                [*wrapper, sys.executable, "-P", *program, kind],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                process_group=0,
            )
        finally:
            os.close(output)
        child = Child(name, kind, popen, path, 0, dies)
        self.children.append(child)
        return child

    async def ready(self, *children: Child) -> None:
        """Wait until each poller or worker has started and serves its metrics.

        Raises:
            ProcessFailed: one ended, or was not ready in time.
        """
        for child in children:
            deadline = monotonic() + START_LIMIT_S
            while not self._is_ready(child):
                if child.popen.poll() is not None and not child.expected_to_die:
                    raise ProcessFailed(f"{child.name} ended as it started:\n{log_since(child.log)}")
                if monotonic() > deadline:
                    raise ProcessFailed(f"{child.name} was not ready in {START_LIMIT_S:g} s:\n{log_since(child.log)}")
                if child.popen.poll() is not None:
                    break
                await asyncio.sleep(0.05)

    @staticmethod
    def _is_ready(child: Child) -> bool:
        started = False
        for line in child.said().splitlines():
            if '"metrics.serving"' in line:
                child.port = int(json.loads(line)["port"])
            started = started or f'"{child.kind}.started"' in line
        return started and child.port is not None

    def living(self, kind: str | None = None) -> list[Child]:
        """Processes that run, oldest first."""
        return [child for child in self.children if child.alive and kind in (None, child.kind)]

    def kill(self, child: Child) -> None:
        """SIGKILL, and reap."""
        child.expected_to_die = True
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        self._reap(child)

    def signal(self, child: Child, number: signal.Signals) -> None:
        """Send any other signal."""
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    async def terminate(self, child: Child, limit_s: float = 20.0) -> float:
        """SIGTERM; the seconds until it had ended.

        Raises:
            ProcessFailed: it had to be killed, or ended with another code than 0.
        """
        began = monotonic()
        child.expected_to_die = True
        self.signal(child, signal.SIGTERM)
        code = await self.wait(child, limit_s)
        if code is None:
            self.kill(child)
            raise ProcessFailed(f"{child.name} did not end within {limit_s:g} s of SIGTERM:\n{log_since(child.log)}")
        if code != 0:
            raise ProcessFailed(f"{child.name} ended with {code} after SIGTERM:\n{log_since(child.log)}")
        return monotonic() - began

    async def wait(self, child: Child, limit_s: float) -> int | None:
        """Wait for a process to end; its code, or None when it runs on."""
        deadline = monotonic() + limit_s
        while child.popen.poll() is None:
            if monotonic() > deadline:
                return None
            await asyncio.sleep(0.02)
        self._reap(child)
        return child.popen.returncode

    def check(self) -> None:
        """Raise ProcessFailed when a process has ended that no scenario meant to."""
        for child in self.children:
            if not child.alive and not child.expected_to_die:
                child.expected_to_die = True
                raise ProcessFailed(f"{child.name} ended by itself:\n{log_since(child.log)}")

    def close(self) -> None:
        """Kill and reap everything."""
        for child in self.children:
            self.kill(child)

    async def sample_for_ever(self) -> None:
        """Keep the figures of every process that lives."""
        while True:
            await self.sample()
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def sample(self) -> None:
        """Take the figures of every process that lives and answers."""
        living = [child for child in self.living() if child.port is not None]
        for child, seen in zip(living, await asyncio.gather(*(sample(c.pid, c.port) for c in living)), strict=True):
            if seen is None:
                continue
            metric, count = WARM_AFTER[child.kind]
            if child.first is None and seen.metrics.get(metric, 0) >= count:
                child.first = seen
            child.last = seen
            for name, value in seen.metrics.items():
                self._totals[child.pid, name] = value
                self._lowest[name] = min(self._lowest.get(name, value), value)

    def total(self, metric: str) -> float:
        """A counter's sum over all processes that there were, as last seen of each."""
        return sum(value for (_, name), value in self._totals.items() if name == metric)

    def lowest(self, metric: str) -> float | None:
        """The lowest value at which any process showed a gauge."""
        return self._lowest.get(metric)

    @staticmethod
    def _reap(child: Child) -> None:
        child.popen.wait()
        if child.popen.stdin is not None:
            with suppress(OSError):
                child.popen.stdin.close()
