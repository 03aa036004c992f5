"""Starts the receiver as a process of its own, repairs what it plays, and stops it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from app.embedded.files import log_since, open_log
from app.errors import HomingError
from workers.demo.destinations import Destination

STOP_LIMIT_S = 5.0


class ChildDied(HomingError):
    """A process of the demo ended by itself; the message holds the last lines of its log."""


def died(name: str, log: Path) -> ChildDied:
    """The error for a process that ended by itself."""
    said = log_since(log) or "(its log is empty)"
    return ChildDied(f"the {name} ended unexpectedly; the last lines of {log}:\n{said}")


class ReceiverProcess:
    """The running receiver; leaving the `with` block stops it. It also ends by itself when this process dies.

    Args:
        wanted: its endpoints; their secrets go through its standard input.
        folder: where its two files are put: `received.jsonl`, one line a request, and `receiver.log`.

    Raises:
        ChildDied: it did not start.
    """

    def __init__(self, wanted: Sequence[Destination], folder: Path) -> None:
        self.received = folder / "received.jsonl"
        self._log = folder / "receiver.log"
        self.received.touch(mode=0o600)
        output = open_log(self._log)
        with open(output, "wb") as errors:  # noqa: PTH123 - a descriptor, not a path
            self._child = subprocess.Popen(  # noqa: S603
                # As a file: it needs nothing of Homing, so it shall find nothing of it, nor of the folder we are in.
                [sys.executable, "-P", str(Path(__file__).with_name("receiver.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={name: value for name, value in os.environ.items() if not name.upper().startswith("HOMING_")},
                start_new_session=True,  # a Ctrl-C in the terminal reaches only the demo, which stops it in order
                text=True,
            )
        endpoints = {d.name: {"scheme": d.scheme, "secret": d.secret} for d in wanted}
        try:
            self._tell(json.dumps({"log": str(self.received), "endpoints": endpoints}))
            self.port = int(self._hear())
        except BaseException:
            self.stop()
            raise

    def repair(self, name: str) -> None:
        """Make an endpoint answer 200 from now on; returns once it does."""
        self._tell(f"repair {name}")
        self._hear()

    def check(self) -> None:
        """Raise ChildDied when it has ended."""
        if self._child.poll() is not None:
            raise died("receiver", self._log)

    def stop(self) -> None:
        """End it and reap it; all that it received is in the file then. Does nothing the second time."""
        if self._child.stdin is not None and not self._child.stdin.closed:
            with suppress(OSError):  # it is gone already
                self._child.stdin.close()
        try:
            self._child.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()

    def __enter__(self) -> ReceiverProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _tell(self, line: str) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        except OSError:
            raise died("receiver", self._log) from None

    def _hear(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise died("receiver", self._log)
        return line.strip()
