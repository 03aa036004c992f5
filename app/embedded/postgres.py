"""The embedded PostgreSQL: real, of one home folder, on loopback TCP, with a generated password."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import psycopg

from app.embedded.cluster import (
    USER,
    clear_leftovers,
    initialise,
    processes_of,
    running_postmaster,
    set_aside,
    write_configuration,
)
from app.embedded.files import password_in
from app.embedded.lifecycle import EmbeddedServer
from app.embedded.placement import Placement, place
from app.embedded.ports import LOOPBACK
from app.embedded.process import Account, Seen
from app.errors import EmbeddedServerError

DATABASE = "homing"


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL of one home: data survive `stop`, `kill` and `restart`."""

    title = "PostgreSQL"
    port_setting = "HOMING_POSTGRES_PORT"
    url_setting = "HOMING_DATABASE_URL"
    stop_steps = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 10.0))

    def __init__(
        self,
        home: Path,
        port: int = 0,
        extra_settings: Mapping[str, str | int] | None = None,
        *,
        preferred_port: int = 0,
    ) -> None:
        """See `EmbeddedServer`; `extra_settings` are PostgreSQL settings by name, such as `{"max_connections": 50}`."""
        super().__init__(home, port, preferred_port=preferred_port)
        self._extra = dict(extra_settings or {})
        self._password_file = self.home / "postgres_password"

    @cached_property
    def _placement(self) -> Placement:
        return place(self.home)

    @property
    def data_folder(self) -> Path:
        """Where its data are: under the home, or, when Homing runs as root, under `/var/lib/homing`."""
        return self._placement.data

    @property
    def url(self) -> str:
        """Where clients connect, password included: never log it."""
        return f"postgresql://{USER}:{password_in(self._password_file)}@{LOOPBACK}:{self.port}/{DATABASE}"

    @property
    def log_file(self) -> Path:
        """What the server said."""
        return self.home / "postgres.log"

    def erase(self) -> None:
        """Stop the server and delete its data, its password and its note, wherever they are."""
        self.stop()
        shutil.rmtree(self._placement.cluster, ignore_errors=True)
        self._password_file.unlink(missing_ok=True)
        if self._placement.note is not None:
            self._placement.note.unlink(missing_ok=True)

    def _prepare(self) -> None:
        placement = self._placement
        if placement.data.exists() and not self._password_file.exists():
            raise EmbeddedServerError(
                f"{placement.data} holds a database, but its password file {self._password_file} is gone; "
                "restore that file, or move the data away to begin without them"
            )
        initialise(placement, password_in(self._password_file))

    def _command(self, port: int) -> tuple[Sequence[str], Path, Account | None]:
        placement = self._placement
        configuration = write_configuration(placement, port, self._extra)
        command = [
            str(placement.binaries / "postgres"),
            "-D",
            str(placement.data),
            "-c",
            f"config_file={configuration}",
        ]
        return command, Path("/"), placement.account

    def _answers(self) -> bool:
        return postgres_answers(self.port, password_in(self._password_file))

    def _find(self) -> tuple[Seen, int] | None:
        placement = self._placement
        home_is_new = not self._password_file.exists() and placement.note is not None and not placement.note.exists()
        if home_is_new and placement.cluster.exists():
            set_aside(placement)
        return running_postmaster(placement)

    def _after_death(self) -> None:
        clear_leftovers(self._placement)

    def has_processes(self) -> bool:
        """Whether any process of this cluster lives, its children included."""
        return bool(processes_of(self._placement))


def postgres_answers(port: int, password: str) -> bool:
    """Log in for real; creates the database `homing` if it is missing.

    Raises:
        EmbeddedServerError: the server refuses our password, so waiting is of no use.
    """
    try:
        with psycopg.connect(
            host=LOOPBACK,
            hostaddr=LOOPBACK,
            port=port,
            user=USER,
            password=password,
            dbname="postgres",
            connect_timeout=5,
            sslmode="disable",
            gssencmode="disable",
            require_auth="scram-sha-256",  # whoever else listens there does not get the password
            autocommit=True,
        ) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.Error as error:
        if "password authentication failed" in str(error):
            raise EmbeddedServerError(
                f"PostgreSQL on {LOOPBACK}:{port} refuses the password of this home; restore the file "
                "`postgres_password` that belongs to its data"
            ) from error
        return False
    return True
