"""Real servers for every test that wants them: one PostgreSQL and one Valkey per run, a database of its own per test.

The database is a copy of a template that the real migrations built. `HOMING_DATABASE_URL` and `HOMING_REDIS_URL` point the
tests at servers that run already (the role must be allowed to make databases).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings, load_settings
from app.db import make_engine
from app.embedded.servers import RunningServers, ensure_servers
from app.migrate import migrate
from app.sealing import SecretKeys

_names = count()


@dataclass(frozen=True)
class Servers:
    """Where the run's servers are, and their home folder."""

    running: RunningServers
    home: Path

    def url_of(self, database: str) -> str:
        return self.running.database_url.rsplit("/", 1)[0] + "/" + database


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    home = tmp_path_factory.mktemp("servers") / "home"
    with ensure_servers(load_settings(home=home)) as running:
        servers = Servers(running, home)
        template = f"homing_template_{os.getpid()}"
        with psycopg.connect(running.database_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {template}")
            connection.execute(f"CREATE DATABASE {template}")
        migrate(servers.url_of(template))
        yield servers
        with psycopg.connect(running.database_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {template} WITH (FORCE)")


@pytest.fixture
def database_url(servers: Servers) -> Iterator[str]:
    """A migrated, empty database of the test's own."""
    name = f"homing_test_{os.getpid()}_{next(_names)}"
    with psycopg.connect(servers.running.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE homing_template_{os.getpid()}")
    yield servers.url_of(name)
    with psycopg.connect(servers.running.database_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_url(servers: Servers) -> Iterator[str]:
    """The run's Redis, emptied before and after."""
    url = servers.running.redis_url
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Fast timing: a deadline of 2 s, a lease of 4 s, loopback opened."""
    return load_settings(
        home=tmp_path / "home",
        allow_networks=("127.0.0.0/8", "::1/128"),
        deadline_s=2.0,
        connect_timeout_s=1.0,
        lease_s=4.0,
        slow_poll_s=0.25,
        metrics_port=0,
    )


@pytest.fixture
def keys(settings: Settings) -> SecretKeys:
    return SecretKeys.load(settings, embedded=True)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(database_url, name="test", pool_size=20)
    yield engine
    await engine.dispose()
