"""The home folder and the private files in it: folders mode 700, files mode 600, replaced atomically."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from app.errors import EmbeddedServerError

LOG_KEEP_BYTES = 16 << 20


def prepare_home(home: Path) -> None:
    """Create the home folder with mode 700, or check that an existing one may hold secrets.

    Raises:
        EmbeddedServerError: it cannot be created or written, everybody may write to it, or it is another user's.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = home.stat()
    except OSError as error:
        raise EmbeddedServerError(
            f"the home folder {home} cannot be used: {error.strerror}; "
            "set HOMING_HOME to a folder that you can write to"
        ) from error
    if found.st_uid != os.geteuid():
        raise EmbeddedServerError(
            f"the home folder {home} belongs to user id {found.st_uid}, this process runs as {os.geteuid()}; "
            "run Homing as that user, or set HOMING_HOME to a folder of your own"
        )
    if found.st_mode & stat.S_IWOTH:
        raise EmbeddedServerError(f"the home folder {home} is writable by everybody; run `chmod 700` on it")
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        raise EmbeddedServerError(
            f"the home folder {home} is not writable; run `chmod 700` on it, or set HOMING_HOME to another folder"
        )


def write_file(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace `path` atomically; a reader sees the old or the new text, a crash leaves either.

    Raises:
        EmbeddedServerError: the folder cannot be written; the old file is untouched.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise EmbeddedServerError(
            f"{path} cannot be written: {error.strerror}; check the folder and its disk"
        ) from error


def password_in(path: Path) -> str:
    """The password that `path` holds; made on first use, mode 600.

    Raises:
        EmbeddedServerError: the file is empty, unreadable or cannot be written.
    """
    try:
        password = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        password = secrets.token_urlsafe(24)
        write_file(path, password + "\n")
    except (OSError, ValueError) as error:
        raise EmbeddedServerError(f"the password file {path} cannot be read: {error}; restore it, mode 600") from error
    if not password:
        raise EmbeddedServerError(f"the password file {path} is empty; restore it, or move the home folder away")
    return password


def open_log(path: Path) -> int:
    """A descriptor that appends to the log (mode 600); a log over 16 MiB moves to `<name>.1` first.

    Raises:
        EmbeddedServerError: the log cannot be opened.
    """
    try:
        if path.exists() and path.stat().st_size > LOG_KEEP_BYTES:
            path.replace(path.with_name(path.name + ".1"))
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EmbeddedServerError(f"the log {path} cannot be opened: {error.strerror}; check the folder") from error


def log_since(path: Path, offset: int = 0, lines: int = 12) -> str:
    """The last `lines` lines that were logged after byte `offset`; empty when there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(offset, file.seek(0, os.SEEK_END) - 64 * 1024))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
