"""PostgreSQL's data folder: initdb, configuration, and what a killed server leaves in it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from app.embedded.files import write_file
from app.embedded.placement import Placement, claim_folder
from app.embedded.ports import LOOPBACK
from app.embedded.process import Seen, as_account, seen_processes, send, server_environment, wait_until
from app.errors import EmbeddedServerError

USER = "homing"
SETTING_NAME = re.compile(r"[a-z][a-z0-9_.]*")
LEFTOVER_LIMIT_S = 2.0
"""An orphan leaves at once when it is idle; one in the midst of a long query does not look."""
KILLED_LIMIT_S = 10.0
INITDB_LIMIT_S = 120.0


def cluster_name(placement: Placement) -> str:
    """Stands in the title of each of this cluster's processes; unique per data folder."""
    return "homing-" + hashlib.sha256(os.fsencode(placement.data)).hexdigest()[:20]


def initialise(placement: Placement, password: str) -> None:
    """Run initdb unless the data folder exists; it appears complete or not at all.

    Raises:
        EmbeddedServerError: initdb failed, with what it said; or `data` is something else than a data folder.
    """
    if placement.data.exists():
        if not (placement.data / "PG_VERSION").exists():
            raise EmbeddedServerError(
                f"{placement.data} is not a PostgreSQL data folder (no PG_VERSION); move it away and start again"
            )
        return
    given = placement.cluster / "initdb_password"
    try:
        if placement.account is None:
            placement.cluster.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            placement.write_note()
            claim_folder(placement.cluster)
        for unfinished in placement.cluster.glob("data.new-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        # A new name each time: the initdb of a killed owner may still be at work in the old one.
        fresh = Path(tempfile.mkdtemp(dir=placement.cluster, prefix="data.new-"))
        write_file(given, password + "\n")
        if placement.account is not None:
            for path in (fresh, given):
                os.chown(path, placement.account.uid, placement.account.gid)
        _initdb(placement, fresh, given)
        fresh.rename(placement.data)
    except OSError as error:
        raise EmbeddedServerError(
            f"{placement.cluster} cannot be filled: {error}; check the folder and its disk"
        ) from error
    finally:
        given.unlink(missing_ok=True)


def _initdb(placement: Placement, data: Path, password_file: Path) -> None:
    said = ""
    for locale in ("C.UTF-8", "C"):
        command = [
            str(placement.binaries / "initdb"),
            f"--pgdata={data}",
            "--auth=scram-sha-256",
            f"--username={USER}",
            f"--pwfile={password_file}",
            "--encoding=UTF8",
            f"--locale={locale}",
        ]
        try:
            done = subprocess.run(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=INITDB_LIMIT_S,
                check=False,
                cwd="/",
                env=server_environment(),
                **as_account(placement.account),
            )
        except subprocess.SubprocessError as error:
            raise EmbeddedServerError(f"initdb in {data} failed: {error}; check the disk's speed and space") from error
        if done.returncode == 0:
            return
        said = "\n".join(done.stdout.splitlines()[-12:])
        if "locale" not in said:
            break
    raise EmbeddedServerError(
        f"initdb in {data} failed with:\n{said}\n"
        "Correct what it names, or set HOMING_DATABASE_URL to a server of your own."
    )


def write_configuration(placement: Placement, port: int, extra: Mapping[str, str | int]) -> Path:
    """Write the server's whole configuration; `extra` wins. It holds no secret.

    Raises:
        EmbeddedServerError: a name in `extra` is not one of a setting, or the file cannot be written.
    """
    settings: dict[str, str | int] = {
        "listen_addresses": LOOPBACK,
        "port": port,
        "unix_socket_directories": "",
        "cluster_name": cluster_name(placement),
        "max_connections": 200,
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] ",
        "lc_messages": "C",
        **extra,
    }
    lines = ["# Written by Homing at each start; changes made here are lost."]
    for name, value in settings.items():
        if not SETTING_NAME.fullmatch(name):
            raise EmbeddedServerError(f"{name!r} is not the name of a PostgreSQL setting; correct extra_settings")
        quoted = str(value).replace("\\", "\\\\").replace("'", "''")
        lines.append(f"{name} = '{quoted}'")
    path = placement.cluster / "postgresql.conf"
    write_file(path, "\n".join(lines) + "\n", mode=0o600 if placement.account is None else 0o644)
    return path


def processes_of(placement: Placement) -> list[Seen]:
    """All live processes of this cluster. Title and user decide: both are readable without special rights."""
    uid = os.geteuid() if placement.account is None else placement.account.uid
    marks = (f"-D {placement.data} ", f" {cluster_name(placement)}: ")
    return [
        seen
        for seen in seen_processes()
        if seen.uid == uid and "postgres" in seen.command and any(mark in f"{seen.command} " for mark in marks)
    ]


def running_postmaster(placement: Placement) -> tuple[Seen, int] | None:
    """The live postmaster of this data folder and its port."""
    try:
        lines = (placement.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        pid, port = int(lines[0]), int(lines[3])
    except (OSError, ValueError, IndexError):
        return None
    return next(((seen, port) for seen in processes_of(placement) if seen.pid == pid), None)


def clear_leftovers(placement: Placement) -> None:
    """After the postmaster's death: wait for its children, kill those that stay, remove a stale pid file.

    The pid file of a killed server would block the next start as soon as another process, or a zombie, has that pid.
    Removing it is safe only when no process of the cluster lives: they would share the data with the new server.

    Raises:
        EmbeddedServerError: a process of the cluster outlived SIGKILL; the pid file stays.
    """
    if not placement.data.exists():
        return
    if not wait_until(lambda: not processes_of(placement), LEFTOVER_LIMIT_S):
        for seen in processes_of(placement):
            send(seen, signal.SIGKILL)
        if not wait_until(lambda: not processes_of(placement), KILLED_LIMIT_S):
            raise EmbeddedServerError(
                f"processes of a former PostgreSQL in {placement.data} do not end; stop them first"
            )
    (placement.data / "postmaster.pid").unlink(missing_ok=True)


def set_aside(placement: Placement) -> None:
    """Rename a cluster whose home was deleted, so that a new home begins empty and nothing is destroyed."""
    for seen in processes_of(placement):
        send(seen, signal.SIGINT)
    clear_leftovers(placement)
    placement.cluster.rename(f"{placement.cluster}.of-deleted-home-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
