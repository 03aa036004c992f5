"""Two files in the home: `servers.json` says what runs, the lock on `owner.lock` says whose it is."""

from __future__ import annotations

import json
import os
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path

from app.embedded.files import write_file
from app.errors import EmbeddedServerError


@dataclass(frozen=True)
class Entry:
    """One running server; `started` is opaque, and with the pid it names exactly one process."""

    url: str
    port: int
    pid: int
    started: str


@dataclass(frozen=True)
class Record:
    """What the owner says about its servers; `ready` once it has started all that it will."""

    owner_pid: int
    ready: bool
    postgres: Entry | None = None
    valkey: Entry | None = None


def record_file(home: Path) -> Path:
    """Where the record is; mode 600, as its URLs hold passwords."""
    return home / "servers.json"


def read_record(home: Path) -> Record | None:
    """The record; None when there is none or it is not readable as one."""
    try:
        found = json.loads(record_file(home).read_text(encoding="utf-8"))
        return Record(
            owner_pid=int(found["owner_pid"]),
            ready=bool(found["ready"]),
            postgres=_entry(found.get("postgres")),
            valkey=_entry(found.get("valkey")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _entry(found: dict[str, object] | None) -> Entry | None:
    if found is None:
        return None
    url, port, pid, started = (found[name] for name in ("url", "port", "pid", "started"))
    return Entry(str(url), int(str(port)), int(str(pid)), str(started))


def write_record(home: Path, record: Record) -> None:
    """Replace the record atomically.

    Raises:
        EmbeddedServerError: the home cannot be written.
    """
    write_file(record_file(home), json.dumps(asdict(record), indent=2) + "\n")


class OwnerLock:
    """The right to start and stop a home's servers; the kernel takes it back when its process dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        _held.add(self)

    @classmethod
    def try_take(cls, home: Path) -> OwnerLock | None:
        """Take the lock if it is free, without waiting.

        Raises:
            EmbeddedServerError: the lock file cannot be opened.
        """
        import fcntl

        path = home / "owner.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise EmbeddedServerError(f"{path} cannot be opened: {error.strerror}; check the home folder") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise EmbeddedServerError(
                f"{path} cannot be locked: {error.strerror}; use a home on a local disk"
            ) from error
        return cls(descriptor)

    def release(self) -> None:
        """Give the lock back; does nothing the second time."""
        descriptor, self._descriptor = self._descriptor, -1
        _held.discard(self)
        if descriptor >= 0:
            os.close(descriptor)


_held: weakref.WeakSet[OwnerLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    # A forked worker shares the lock's descriptor; it would keep the lock after the owner's death.
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
