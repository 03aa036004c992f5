"""What both embedded servers share: start until it answers, stop, kill, adopt what a killed owner left."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from app.embedded.files import log_since, prepare_home
from app.embedded.ports import FIRST_PORT, LAST_PORT, LOOPBACK, free_port, is_free
from app.embedded.process import Account, Seen, ServerProcess, wait_until
from app.errors import EmbeddedServerError

START_LIMIT_S = 60.0
ADOPT_LIMIT_S = 10.0
SPAWN_TRIES = 3
KILL = ((signal.SIGKILL, 10.0),)


class EmbeddedServer(ABC):
    """One server of one home folder. Not thread-safe; one object per process."""

    title: ClassVar[str]
    port_setting: ClassVar[str]
    url_setting: ClassVar[str]
    stop_steps: ClassVar[tuple[tuple[signal.Signals, float], ...]]

    def __init__(self, home: Path, port: int = 0, *, preferred_port: int = 0) -> None:
        """Describe the server; nothing is touched yet.

        Args:
            home: folder for its files; created by `start`.
            port: the loopback port it must have; 0 picks a free one at the first start and keeps it for the next.
            preferred_port: with `port` 0, the port of a former server, taken again if it is free.
        """
        self.home = home.resolve()
        # It comes from a file that may be damaged: only a port that we could have picked.
        self.port = port or (preferred_port if FIRST_PORT <= preferred_port < LAST_PORT else 0)
        self._port_is_fixed = port != 0
        self._process: ServerProcess | None = None
        self.on_start: Callable[[], None] | None = None
        """Called after each start, so that a new pid or port becomes known."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, password included: never log it."""

    @property
    @abstractmethod
    def log_file(self) -> Path:
        """What the server said."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make its files ready for a start."""

    @abstractmethod
    def _command(self, port: int) -> tuple[Sequence[str], Path, Account | None]:
        """Write its configuration for `port`; its command, working folder and account."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it answers on `self.port` now; raises EmbeddedServerError when it never will."""

    @abstractmethod
    def _find(self) -> tuple[Seen, int] | None:
        """The live main process of this home, whoever started it, and its port."""

    def _after_death(self) -> None:  # noqa: B027 - most servers leave nothing behind
        """Wait until nothing of a dead server stands in the way of the next."""

    @property
    def pid(self) -> int | None:
        """Pid of the main process; None while none was started."""
        return self._process.pid if self._process is not None else None

    @property
    def started(self) -> str:
        """Opaque start time of the main process; with the pid it names exactly one process."""
        return self._process.started if self._process is not None else ""

    def is_running(self) -> bool:
        """Whether the process that this object started or adopted lives."""
        return self._process is not None and self._process.alive()

    def start(self) -> None:
        """Start the server and wait until it answers, at most 60 s; does nothing when it runs.

        Raises:
            EmbeddedServerError: with the last lines of its log; no process is left behind.
        """
        if self.is_running():
            return
        prepare_home(self.home)
        if found := self._find():
            raise EmbeddedServerError(
                f"{self.title} of {self.home} runs already as process {found[0].pid}; attach to it, or stop it first"
            )
        self._after_death()
        self._prepare()
        for left in reversed(range(SPAWN_TRIES)):
            self.port = self._choose_port()
            offset = self.log_file.stat().st_size if self.log_file.exists() else 0
            command, folder, account = self._command(self.port)
            self._process = ServerProcess.spawn(command, log=self.log_file, folder=folder, account=account)
            try:
                self._wait_until_it_answers(self._process, offset)
            except BaseException as error:
                self.kill()
                # Somebody took the free port between our look and the server's.
                lost_port = "Address already in use" in log_since(self.log_file, offset)
                if left and lost_port and not self._port_is_fixed and isinstance(error, EmbeddedServerError):
                    continue
                raise
            break
        if self.on_start is not None:
            self.on_start()

    def adopt(self) -> bool:
        """Take over the live server of this home that a killed owner left; False when there is none to keep.

        One that does not answer within 10 s, or listens on another port than the settings ask for, is stopped.

        Raises:
            EmbeddedServerError: it had to be stopped and could not be.
        """
        found = self._find()
        if found is None:
            return False
        wanted, self._process = self.port, ServerProcess(found[0])
        self.port = found[1]
        right_port = not self._port_is_fixed or wanted == self.port
        if (
            right_port
            and wait_until(lambda: not self.is_running() or self._answers(), ADOPT_LIMIT_S)
            and self.is_running()
        ):
            return True
        self.stop()
        self.port = wanted or self.port
        return False

    def stop(self) -> None:
        """Stop the server in order, by force if it does not follow; does nothing when none was started.

        Raises:
            EmbeddedServerError: it outlived SIGKILL.
        """
        self._end(self.stop_steps)

    def kill(self) -> None:
        """SIGKILL the main process, reap it and wait until a new start is possible: the crash of a fault test."""
        self._end(KILL)

    def restart(self) -> None:
        """Stop and start again on the same port."""
        self.stop()
        self.start()

    def _end(self, steps: Sequence[tuple[signal.Signals, float]]) -> None:
        if self._process is not None:
            self._process.end(steps)
            self._process = None
            self._after_death()

    def _choose_port(self) -> int:
        if self.port and is_free(self.port):
            return self.port
        if self._port_is_fixed:
            raise EmbeddedServerError(
                f"port {self.port} on {LOOPBACK}, wanted for {self.title}, is in use by another program; "
                f"stop that program, or set {self.port_setting} to another port (0 picks a free one)"
            )
        return free_port()

    def _wait_until_it_answers(self, process: ServerProcess, offset: int) -> None:
        ready = wait_until(lambda: not process.alive() or self._answers(), START_LIMIT_S)
        if ready and process.alive():
            return
        what = f"did not answer within {START_LIMIT_S:.0f} s" if process.alive() else "ended while it started"
        raise EmbeddedServerError(
            f"{self.title} of {self.home} {what}. Its log, {self.log_file}, ends with:\n"
            f"{log_since(self.log_file, offset) or '(nothing)'}\n"
            f"Correct what it names, or set {self.url_setting} to a server of your own."
        )
