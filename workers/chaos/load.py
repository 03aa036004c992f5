"""The load of a scenario: tenants, endpoints with a fan-out of one to three, and producers as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import AsyncEngine

from app.backoff import RetryPolicy
from app.endpoints import create_endpoint
from app.sealing import SecretKeys
from app.signing import new_secret
from app.tenants import create_tenant
from workers.chaos.fleet import ROOT

TENANTS = ("chaos-a", "chaos-b", "chaos-c")
#: Quick, so that a retry is not what a scenario waits for; the fault matrix's own schedule.
SCHEDULE_S = (0.2, 0.5, 1.0, 2.0)
#: Share of transactions that are rolled back after both rows were written.
ROLLBACK = 0.1


@dataclass(frozen=True)
class Destination:
    """One endpoint: its name is its path at the receiver."""

    name: str
    tenant: str
    event_types: tuple[str, ...]
    scheme: str = "standard"
    url: str | None = None
    policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(max_attempts=30, schedule_s=SCHEDULE_S, cap_s=4))
    secret: str = field(default_factory=new_secret, repr=False)


def destinations(per_tenant: int) -> list[Destination]:
    """Endpoints of every tenant. An event `one.i` has one receiver, `two.i` two, `three.i` three of its tenant's."""
    found = []
    for tenant in TENANTS:
        for i in range(per_tenant):
            types = [f"one.{i}", *(f"two.{(i - k) % per_tenant}" for k in range(2))]
            types += [f"three.{(i - k) % per_tenant}" for k in range(3)]
            found.append(Destination(f"{tenant}-{i}", tenant, tuple(types), scheme="hex" if i % 4 == 3 else "standard"))
    return found


def choices(per_tenant: int, tenants: Sequence[str] = TENANTS) -> list[tuple[str, str]]:
    """Every (tenant, event type) that the endpoints of `destinations` subscribe to."""
    return [(t, f"{fan}.{i}") for t in tenants for fan in ("one", "two", "three") for i in range(per_tenant)]


async def register(engine: AsyncEngine, keys: SecretKeys, wanted: Sequence[Destination], port: int) -> dict[str, str]:
    """Make tenants and endpoints; the endpoints' ids by name."""
    ids: dict[str, str] = {}
    async with engine.begin() as connection:
        for tenant in TENANTS:
            await create_tenant(connection, tenant)
        for destination in wanted:
            ids[destination.name] = await add(connection, keys, destination, port)
    return ids


async def add(connection: Any, keys: SecretKeys, destination: Destination, port: int) -> str:
    """Make one endpoint; its id."""
    made = await create_endpoint(
        connection,
        keys,
        tenant_id=destination.tenant,
        name=destination.name,
        url=destination.url or f"http://127.0.0.1:{port}/{destination.name}",
        actor="chaos",
        event_types=destination.event_types,
        scheme=destination.scheme,
        policy=destination.policy,
        secret=destination.secret,
    )
    return str(made["id"])


class Producer:
    """A producer process that runs; `stop` it, or `finish` waits until it has made all that it was to make."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.chaos.producer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.upper().startswith("HOMING_")}
            | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(task).encode() + b"\n")
        self._child.stdin.flush()
        self.figures: dict[str, Any] = {}

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    async def stop(self, limit_s: float = 30.0) -> dict[str, Any]:
        """End it in order; what became of its transactions."""
        assert self._child.stdin is not None
        with suppress(OSError):
            self._child.stdin.close()
        return await self.finish(limit_s)

    async def finish(self, limit_s: float = 120.0) -> dict[str, Any]:
        """Wait for its end; what became of its transactions."""
        if not self.figures:
            assert self._child.stdout is not None
            try:
                said = await asyncio.wait_for(asyncio.to_thread(self._child.stdout.read), limit_s)
            finally:
                self.kill()
            self.figures = json.loads(said)
        return self.figures

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def task(
    name: str,
    database_url: str,
    source: random.Random,
    *,
    rate: float,
    count: int,
    of: Sequence[tuple[str, str]],
    rollback: float = ROLLBACK,
    die: str | None = None,
) -> dict[str, Any]:
    """What a producer is to do."""
    return {
        "name": name,
        "database_url": database_url,
        "seed": source.randrange(1 << 30),
        "rate": rate,
        "count": count,
        "choices": list(of),
        "rollback": rollback,
        "die": die,
    }


def commit_at_once(database_url: str, tenant: str, event_type: str, count: int) -> None:
    """Commit `count` orders and their events by one transaction."""
    with psycopg.connect(database_url, connect_timeout=5) as connection:
        connection.execute(
            """
            WITH event AS (
                INSERT INTO outbox_events (tenant_id, event_type, payload)
                SELECT %(tenant)s, %(type)s, jsonb_build_object('n', n) FROM generate_series(1, %(count)s) AS n
                RETURNING id, payload
            )
            INSERT INTO orders (event_id, tenant_id, event_type, payload)
            SELECT id, %(tenant)s, %(type)s, payload FROM event
            """,
            {"tenant": tenant, "type": event_type, "count": count},
        )
