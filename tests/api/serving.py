"""The API as it is really run: a process of its own, on a port, with its own Postgres database."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg

from app.config import load_settings
from app.sealing import SecretKeys
from tests.conftest import Servers
from workers.processes import Processes


@contextmanager
def database_of_its_own(servers: Servers) -> Iterator[str]:
    """A migrated, empty database for all tests of a module."""
    name = f"homing_test_{os.getpid()}_{uuid4().hex[:12]}"
    with psycopg.connect(servers.running.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE homing_template_{os.getpid()}")
    try:
        yield servers.url_of(name)
    finally:
        with psycopg.connect(servers.running.database_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def served(folder: Path, database_url: str, redis_url: str) -> Iterator[tuple[str, Processes]]:
    """Where it serves, and its process `api`."""
    SecretKeys.load(load_settings(home=folder), embedded=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = dict(os.environ) | {
        "HOMING_DATABASE_URL": database_url,
        "HOMING_REDIS_URL": redis_url,
        "HOMING_SECRET_KEYS_FILE": str(folder / "secret_keys"),
        "HOMING_API_PORT": str(port),
        "HOMING_LOG_LEVEL": "warning",
    }
    url = f"http://127.0.0.1:{port}"
    with Processes(environment, folder) as processes:
        processes.start("api")
        _wait_until_it_answers(url, folder / "api.log", processes)
        yield url, processes


def wait_until(holds: Callable[[], bool], otherwise: Callable[[], str], limit_s: float = 60) -> None:
    """Come back as soon as something holds; fail with `otherwise` when it does not within the limit."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.05)


def _wait_until_it_answers(url: str, log: Path, processes: Processes) -> None:
    def answers() -> bool:
        assert not processes.exited(), log.read_text(encoding="utf-8")
        try:
            return httpx.get(f"{url}/livez", timeout=1, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answers, lambda: f"the API does not answer: {log.read_text(encoding='utf-8')}")
