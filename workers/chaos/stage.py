"""Where the suite plays: servers, a template database, a folder. Nothing that holds anything else is touched; all is removed.

Servers come from wheels, in a fresh temporary home. With HOMING_DATABASE_URL or HOMING_REDIS_URL the suite makes databases
of its own there, and takes an empty Redis database; scenarios that kill or stop such a server are skipped.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import sql
from pydantic import SecretStr

from app.config import Settings, load_settings
from app.embedded import EmbeddedPostgres, EmbeddedValkey, ensure_servers
from app.errors import Conflict, ServerAway
from app.migrate import migrate
from app.sealing import SecretKeys
from workers.demo.own_servers import own_redis

#: The fault matrix's own timing, which the recovery bar below follows from.
DEADLINE_S = 2.0
LEASE_S = 4.0
SLOW_POLL_S = 0.5
THREADS = 8
#: Seconds in which every delivery that a fault hit must be under way again.
RECOVERY_S = LEASE_S + 2 * SLOW_POLL_S + 1


@dataclass(frozen=True)
class Stage:
    """What all scenarios share."""

    folder: Path
    settings: Settings
    secret_keys: str
    admin_url: str
    redis_url: str
    prefix: str
    postgres: EmbeddedPostgres | None
    """None when the server is not ours to kill."""
    valkey: EmbeddedValkey | None

    @property
    def keys(self) -> SecretKeys:
        return SecretKeys.load(self.settings, embedded=True)

    def url_of(self, database: str) -> str:
        """The URL of a database on the suite's server."""
        return urlsplit(self.admin_url)._replace(path=f"/{database}").geturl()

    def make_database(self, name: str) -> str:
        """A fresh copy of the template; its URL."""
        self._administer("CREATE DATABASE {} TEMPLATE {}", f"{self.prefix}_{name}", f"{self.prefix}_template")
        return self.url_of(f"{self.prefix}_{name}")

    def drop_database(self, name: str) -> None:
        """Drop one of the suite's own databases, whoever is connected."""
        self._administer("DROP DATABASE IF EXISTS {} WITH (FORCE)", f"{self.prefix}_{name}")

    def environment(self, database_url: str, redis_url: str) -> dict[str, str]:
        """What the processes are told: nothing of the user's own settings."""
        return processes_environment(self.folder, self.secret_keys, database_url, redis_url)

    def _administer(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.admin_url, autocommit=True, connect_timeout=5) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def processes_environment(folder: Path, secret_keys: str, database_url: str, redis_url: str) -> dict[str, str]:
    """The environment of Homing's processes in a scenario."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("HOMING_")}
    return inherited | {
        "HOMING_HOME": str(folder),
        "HOMING_DATABASE_URL": database_url,
        "HOMING_REDIS_URL": redis_url,
        "HOMING_SECRET_KEYS": secret_keys,
        "HOMING_ALLOW_NETWORKS": "127.0.0.0/8",
        "HOMING_DEADLINE_S": f"{DEADLINE_S:g}",
        "HOMING_LEASE_S": f"{LEASE_S:g}",
        "HOMING_CONNECT_TIMEOUT_S": "1",
        "HOMING_SLOW_POLL_S": f"{SLOW_POLL_S:g}",
        "HOMING_WORKER_THREADS": str(THREADS),
        "HOMING_QUARANTINE_AFTER": "50",
        "HOMING_METRICS_PORT": "0",
        "HOMING_LOG_LEVEL": "info",
    }


@contextmanager
def stage() -> Iterator[Stage]:
    """Start or reach the servers and build the template; at the end remove everything.

    Raises:
        HomingError: something cannot be had; nothing is left behind.
    """
    given = load_settings()
    folder = Path(tempfile.mkdtemp(prefix="homing-chaos-"))  # mode 700
    key = b64encode(secrets.token_bytes(32)).decode("ascii")
    with ExitStack() as end:
        end.callback(shutil.rmtree, folder, ignore_errors=True)
        settings = load_settings(home=folder, secret_keys=SecretStr(key), postgres_port=0, redis_port=0)
        if given.redis_url is not None:
            url = end.enter_context(own_redis(given.redis_url.get_secret_value()))
            settings = settings.model_copy(update={"redis_url": SecretStr(url)})
        servers = ensure_servers(settings)
        postgres = servers.postgres
        if postgres is not None:
            end.callback(postgres.erase)
        end.callback(servers.stop)
        built = Stage(
            folder=folder,
            settings=settings,
            secret_keys=key,
            admin_url=servers.database_url,
            redis_url=servers.redis_url,
            prefix=f"homing_chaos_{secrets.token_hex(4)}",
            postgres=postgres,
            valkey=servers.valkey,
        )
        if postgres is None:
            end.callback(built.drop_database, "template")
        build_template(built)
        yield built


def build_template(built: Stage) -> None:
    """Make the database that each scenario's is a copy of: Homing's schema, and what the suite watches it with.

    Raises:
        ServerAway: PostgreSQL cannot be reached.
        Conflict: the role may not make databases.
    """
    try:
        built._administer("CREATE DATABASE {}", f"{built.prefix}_template")
    except psycopg.OperationalError as error:
        raise ServerAway(f"PostgreSQL at HOMING_DATABASE_URL cannot be reached: {error}") from error
    except psycopg.Error as error:
        raise Conflict(
            f"the suite needs databases of its own, and PostgreSQL at HOMING_DATABASE_URL refuses them: {error}; use a "
            "role with CREATEDB, or leave HOMING_DATABASE_URL unset"
        ) from error
    url = built.url_of(f"{built.prefix}_template")
    with psycopg.connect(url, connect_timeout=5) as connection:
        if connection.execute("SELECT current_database()").fetchone() != (f"{built.prefix}_template",):
            raise Conflict("HOMING_DATABASE_URL leads to one fixed database; give a URL that goes to the server")
    migrate(url)
    with psycopg.connect(url, connect_timeout=5) as connection:
        connection.execute((Path(__file__).parent / "witness.sql").read_text(encoding="utf-8").encode())
