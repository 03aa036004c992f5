"""A set of named child processes of Homing: started, stopped in order or killed, always reaped.

Each child runs `homing <arguments>` with this Python, in a process group of its own, so that a Ctrl-C in the terminal
reaches the parent only. Each holds one end of a pipe as its stdin: when the parent dies, however, the pipe closes, and
pollers and workers stop (`stop_with_parent`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from app.embedded.files import open_log

#: Set for every child; tells it that its stdin is the pipe from its parent.
PARENT_PIPE = "HOMING_STDIN_IS_PARENT"

_ROOT = Path(__file__).parent.parent


class Processes:
    """Named children. Leaving the `with` block stops all of them. Not thread-safe.

    Args:
        env: complete environment of the children; this process's own by default. Settings go here, never into arguments.
        log_dir: existing folder for one log per name (mode 600, appended to); None lets them write where this process
            does.
    """

    def __init__(self, env: Mapping[str, str] | None = None, log_dir: Path | None = None) -> None:
        self.env = dict(os.environ if env is None else env)
        self.log_dir = log_dir
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `homing <arguments>` under a name; the name is the command when there are no arguments.

        Raises:
            ValueError: a child of this name runs.
            EmbeddedServerError: its log cannot be opened.
        """
        if name in self._children and self._children[name].poll() is None:
            raise ValueError(f"process {name!r} runs already, as {self._children[name].pid}")
        # -P: a folder `workers` or `app` where the user happens to be is not ours.
        command = [sys.executable, "-P", "-m", "workers.cli.main", *(arguments or (name,))]
        log = None if self.log_dir is None else open_log(self.log_dir / f"{name}.log")
        try:
            child = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_importable(self.env) | {PARENT_PIPE: "1"},
                process_group=0,
            )
        finally:
            if log is not None:
                os.close(log)
        self._children[name] = child
        return child

    def log_file(self, name: str) -> Path | None:
        """Where this child writes; None when it writes where this process does."""
        return None if self.log_dir is None else self.log_dir / f"{name}.log"

    def pids(self) -> dict[str, int]:
        """The children that run."""
        return {name: child.pid for name, child in self._children.items() if child.poll() is None}

    def exited(self) -> dict[str, int]:
        """Exit codes of the children that have ended (negative: the signal), reaped."""
        return {name: code for name, child in self._children.items() if (code := child.poll()) is not None}

    def wait(self, name: str, timeout: float | None = None) -> int:
        """Wait for a child to end; its exit code.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        return self._children[name].wait(timeout)

    def stop(self, name: str, timeout: float = 30.0) -> int:
        """SIGTERM a child, wait, SIGKILL it after `timeout` seconds; its exit code."""
        return self._stop([name], timeout)[name]

    def kill(self, name: str) -> int:
        """SIGKILL a child with everything in its group, and reap it: the crash of a fault test; its exit code."""
        child = self._children[name]
        self._signal(child, signal.SIGKILL)
        return self._reap(child)

    def stop_all(self, timeout: float = 30.0) -> dict[str, int]:
        """SIGTERM all children at once, wait at most `timeout` seconds for all, SIGKILL what is left; exit codes."""
        return self._stop(list(self._children), timeout)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    def _stop(self, names: list[str], timeout: float) -> dict[str, int]:
        children = {name: self._children[name] for name in names}
        deadline = time.monotonic() + timeout
        try:
            for child in children.values():
                self._signal(child, signal.SIGTERM)
            for child in children.values():
                with suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, deadline - time.monotonic()))
        finally:  # also when somebody is impatient and interrupts the wait
            for child in children.values():
                self._signal(child, signal.SIGKILL)
            codes = {name: self._reap(child) for name, child in children.items()}
        return codes

    @staticmethod
    def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
        if child.poll() is None:  # until it is reaped, its pid, and so its group, is nobody else's
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)

    @staticmethod
    def _reap(child: subprocess.Popen[bytes]) -> int:
        code = child.wait()
        if child.stdin is not None:
            with suppress(OSError):
                child.stdin.close()
        return code


def stop_with_parent() -> None:
    """In a child of `Processes`: terminate this process in order when its parent is gone. Elsewhere: do nothing."""
    if not os.environ.pop(PARENT_PIPE, None):
        return

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _importable(env: Mapping[str, str]) -> dict[str, str]:
    """`env`, in which this checkout can be imported from any folder; an installed package can be anyway."""
    if _ROOT.name in ("site-packages", "dist-packages"):
        return dict(env)
    return dict(env) | {"PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), env.get("PYTHONPATH"))))}
