"""Where the demo plays: a home, a database and a Redis of its own, which no data of the user's share.

Servers come from wheels, in a fresh temporary home; or, with HOMING_DATABASE_URL or HOMING_REDIS_URL set, the demo makes a
database of its own there. All of it is removed at the end, unless it is to be kept.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_bytes
from types import TracebackType
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.config import Settings, load_settings
from app.embedded import EmbeddedPostgres, ensure_servers
from app.embedded.files import write_file
from app.migrate import migrate
from app.sealing import SecretKeys
from workers.demo.destinations import Destination, destinations
from workers.demo.own_servers import own_database, own_redis
from workers.demo.receiver_process import ReceiverProcess, died
from workers.processes import Processes

DEADLINE_S = 3.0
LEASE_S = 5.0
"""Shorter than the defaults (15 and 20), so that a killed worker's requests come back within seconds."""
STOP_LIMIT_S = 15.0


class Stage:
    """Everything that runs, and must end: enter it, and leave it in any way."""

    home: Path
    settings: Settings
    database_url: str
    keys: SecretKeys
    destinations: list[Destination]
    receiver: ReceiverProcess

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._end = ExitStack()
        self._processes: Processes
        self._running: set[str] = set()

    @property
    def logs(self) -> Path:
        """Folder of the processes' logs and of what the receiver wrote down."""
        return self.home / "logs"

    def __enter__(self) -> Stage:
        """Start the servers, bring the schema, start the receiver.

        Raises:
            HomingError: something cannot be had; nothing is left behind.
        """
        try:
            self._enter()
        except BaseException:
            self._keep = False
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def start(self, *names: str) -> None:
        """Start a `poller`, or a `worker-<number>`, as a process of its own."""
        for name in names:
            self._processes.start(name, name.partition("-")[0])
            self._running.add(name)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self._running.discard(name)
        self._processes.kill(name)

    def stop_processes(self) -> None:
        """Stop poller and workers in order: they finish what is under way."""
        self._running.clear()
        self._processes.stop_all(STOP_LIMIT_S)

    def check(self) -> None:
        """Raise ChildDied when a process has ended that should run."""
        self.receiver.check()
        for name in sorted(self._running & set(self._processes.exited())):
            raise died(name, self.log_of(name))

    def log_of(self, name: str) -> Path:
        """A process's log."""
        return self.logs / f"{name}.log"

    def where_things_are(self) -> list[str]:
        """What `--keep` keeps, in sentences."""
        lines = [
            f"kept: {self.home}",
            f"  logs of every process, and what was received (received.jsonl): {self.logs}",
        ]
        if self.settings.database_url is None:
            return [*lines, f"  look around with: HOMING_HOME={self.home} homing deliveries list --state delivered"]
        name = urlsplit(self.database_url).path.strip("/")
        return [*lines, f"  its database, on the server at HOMING_DATABASE_URL: {name} (drop it when you are done)"]

    def _close(self) -> None:
        with _undisturbed():
            self._end.close()

    def _enter(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="homing-demo-"))  # mode 700
        self._end.callback(self._remove_home)
        given = load_settings()  # refuses a wrong setting before anything is started
        key = b64encode(token_bytes(32)).decode("ascii")
        settings = load_settings(home=self.home, secret_keys=SecretStr(key), postgres_port=0, redis_port=0)
        if given.database_url is not None:
            url = self._end.enter_context(own_database(given.database_url.get_secret_value(), keep=self._keep))
            settings = settings.model_copy(update={"database_url": SecretStr(url)})
        if given.redis_url is not None:
            url = self._end.enter_context(own_redis(given.redis_url.get_secret_value()))
            settings = settings.model_copy(update={"redis_url": SecretStr(url)})
        self.settings = settings
        self.keys = SecretKeys.load(settings, embedded=True)
        if self._keep:
            write_file(self.home / "secret_keys", key + "\n")
        servers = ensure_servers(settings)
        if servers.postgres is not None:
            self._end.callback(self._erase, servers.postgres)
        self._end.callback(servers.stop)
        self.database_url = servers.database_url
        migrate(self.database_url)
        self.logs.mkdir(mode=0o700)
        self.destinations = destinations()
        self.receiver = self._end.enter_context(ReceiverProcess(self.destinations, self.logs))
        self._processes = Processes(self._environment(servers.redis_url, key), self.logs)
        self._end.callback(self.stop_processes)

    def _environment(self, redis_url: str, key: str) -> dict[str, str]:
        """What the processes are told: nothing of the user's own settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("HOMING_")}
        return inherited | {
            "HOMING_HOME": str(self.home),
            "HOMING_DATABASE_URL": self.database_url,
            "HOMING_REDIS_URL": redis_url,
            "HOMING_SECRET_KEYS": key,
            "HOMING_ALLOW_NETWORKS": "127.0.0.0/8",
            "HOMING_CONNECT_TIMEOUT_S": "2",
            "HOMING_DEADLINE_S": f"{DEADLINE_S:g}",
            "HOMING_LEASE_S": f"{LEASE_S:g}",
            "HOMING_METRICS_PORT": "0",
            "HOMING_LOG_LEVEL": "info",
        }

    def _erase(self, postgres: EmbeddedPostgres) -> None:
        if not self._keep:
            postgres.erase()

    def _remove_home(self) -> None:
        if not self._keep:
            shutil.rmtree(self.home, ignore_errors=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave half of it running; ending takes seconds, and every step has its limit."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
