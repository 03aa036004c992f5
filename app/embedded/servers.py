"""Start, share and stop the servers of one home: one process owns them, the others attach."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from app.config import Settings
from app.embedded.files import prepare_home
from app.embedded.lifecycle import EmbeddedServer
from app.embedded.postgres import EmbeddedPostgres, postgres_answers
from app.embedded.process import TICK_S
from app.embedded.record import Entry, OwnerLock, Record, read_record, record_file, write_record
from app.embedded.valkey import EmbeddedValkey, valkey_answers
from app.errors import EmbeddedServerError

STARTING_LIMIT_S = 90.0
"""How long to wait for the servers that another process is starting."""
SILENT_LIMIT_S = 10.0
"""How long to wait for a server that its owner has started and that does not answer."""


class RunningServers:
    """Both servers, external or embedded, answering when this was made. Leaving the `with` block calls `stop`."""

    def __init__(
        self,
        database_url: str,
        redis_url: str,
        *,
        home: Path | None = None,
        lock: OwnerLock | None = None,
        postgres: EmbeddedPostgres | None = None,
        valkey: EmbeddedValkey | None = None,
    ) -> None:
        self._urls = (database_url, redis_url)
        self._home = home
        self._lock = lock
        self._pid = os.getpid()
        self.postgres = postgres
        """The embedded PostgreSQL, when this process owns it."""
        self.valkey = valkey
        """The embedded Valkey, when this process owns it."""

    @property
    def database_url(self) -> str:
        """URL of PostgreSQL, password included: never log it."""
        return self.postgres.url if self.postgres is not None else self._urls[0]

    @property
    def redis_url(self) -> str:
        """URL of Redis or Valkey, password included: never log it."""
        return self.valkey.url if self.valkey is not None else self._urls[1]

    @property
    def owned(self) -> bool:
        """Whether `stop` will stop servers: this process started or adopted them."""
        return self._lock is not None and self._pid == os.getpid()

    def stop(self) -> None:
        """Stop the servers that this process owns and give up the ownership; does nothing the second time.

        Raises:
            EmbeddedServerError: a server outlived SIGKILL; the other was stopped and the ownership is given up.
        """
        if self._lock is None or self._home is None or self._pid != os.getpid():
            return
        lock, self._lock = self._lock, None
        self._urls = (self.database_url, self.redis_url)
        try:
            record_file(self._home).unlink(missing_ok=True)  # first: nobody shall attach to what is about to stop
            try:
                if self.valkey is not None:
                    self.valkey.stop()
            finally:
                if self.postgres is not None:
                    self.postgres.stop()
        finally:
            self.postgres = self.valkey = None
            lock.release()

    def __enter__(self) -> RunningServers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def ensure_servers(settings: Settings) -> RunningServers:
    """Running servers for these settings: external, attached to, adopted from a killed owner, or freshly started.

    Waits at most 90 s for another process that is starting them.

    Raises:
        EmbeddedServerError: a server cannot be started, or another process owns the home and its servers are silent.
            This process has left nothing running.
    """
    database_url, redis_url = _external(settings)
    if database_url and redis_url:
        return RunningServers(database_url, redis_url)
    if os.name != "posix":
        raise EmbeddedServerError(
            "the embedded servers need Linux or macOS; "
            "set HOMING_DATABASE_URL and HOMING_REDIS_URL to servers of your own"
        )
    home = settings.home.resolve()
    prepare_home(home)
    began = time.monotonic()
    while True:
        if lock := OwnerLock.try_take(home):
            return _own(settings, home, lock)
        if attached := running_servers(settings):
            return attached
        _give_up_if_hopeless(settings, home, time.monotonic() - began)
        time.sleep(TICK_S)


def running_servers(settings: Settings) -> RunningServers | None:
    """Attach to servers that answer; None when one does not. Starts and changes nothing."""
    database_url, redis_url = _external(settings)
    if not (database_url and redis_url):
        record = read_record(settings.home.resolve())
        if record is None:
            return None
        if not database_url:
            database_url = record.postgres.url if record.postgres and _postgres_at(record.postgres) else ""
        if not redis_url:
            redis_url = record.valkey.url if record.valkey and valkey_answers(record.valkey.url) else ""
    return RunningServers(database_url, redis_url) if database_url and redis_url else None


def _external(settings: Settings) -> tuple[str, str]:
    given = (settings.database_url, settings.redis_url)
    return (given[0].get_secret_value() if given[0] else "", given[1].get_secret_value() if given[1] else "")


def _postgres_at(entry: Entry) -> bool:
    return postgres_answers(entry.port, urlsplit(entry.url).password or "")


def _own(settings: Settings, home: Path, lock: OwnerLock) -> RunningServers:
    database_url, redis_url = _external(settings)
    # The ports of servers that died without a goodbye: those who were attached to them find the new ones there.
    old = read_record(home) or Record(os.getpid(), ready=False)
    old_ports = [entry.port if entry else 0 for entry in (old.postgres, old.valkey)]
    postgres = None if database_url else EmbeddedPostgres(home, settings.postgres_port, preferred_port=old_ports[0])
    valkey = None if redis_url else EmbeddedValkey(home, settings.redis_port, preferred_port=old_ports[1])
    servers = RunningServers(database_url, redis_url, home=home, lock=lock, postgres=postgres, valkey=valkey)
    try:
        write_record(home, Record(os.getpid(), ready=False))
        for server in (postgres, valkey):
            if server is not None and not server.adopt():
                server.start()

        def tell() -> None:
            write_record(home, Record(os.getpid(), ready=True, postgres=_entry(postgres), valkey=_entry(valkey)))

        tell()
        for server in (postgres, valkey):
            if server is not None:
                server.on_start = tell
    except BaseException:
        servers.stop()
        raise
    return servers


def _entry(server: EmbeddedServer | None) -> Entry | None:
    if server is None or server.pid is None:
        return None
    return Entry(server.url, server.port, server.pid, server.started)


def _give_up_if_hopeless(settings: Settings, home: Path, waited_s: float) -> None:
    """Raise once waiting for the owner is of no use."""
    record = read_record(home)
    if record is None or not record.ready:
        if waited_s > STARTING_LIMIT_S:
            raise EmbeddedServerError(
                f"another process holds {home / 'owner.lock'} and its servers did not start within "
                f"{STARTING_LIMIT_S:.0f} s; look at the logs in {home}, or stop that process"
            )
        return
    needed = (("PostgreSQL", settings.database_url, record.postgres), ("Valkey", settings.redis_url, record.valkey))
    missing = [name for name, url, entry in needed if url is None and entry is None]
    # Not at once: a new owner may be about to replace the record of a killed one.
    if waited_s > (1.0 if missing else SILENT_LIMIT_S):
        problem = f"runs no {' and no '.join(missing)}" if missing else f"has a server that does not answer in {home}"
        raise EmbeddedServerError(
            f"process {record.owner_pid} owns the servers of {home} and {problem}; stop that process and start again, "
            "or set HOMING_HOME to another folder"
        )
