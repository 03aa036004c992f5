"""Where the benchmark runs: fresh embedded servers with fsync on, a receiver process, a poller and workers, all one machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings, load_settings
from app.db import make_engine
from app.embedded import RunningServers, ensure_servers
from app.endpoints import create_endpoint
from app.migrate import migrate
from app.sealing import SecretKeys
from workers.processes import Processes

#: Endpoints that the load is spread over, all of one receiver.
ENDPOINTS = 10


@dataclass
class Stage:
    """What a scenario plays on."""

    servers: RunningServers
    settings: Settings
    engine: AsyncEngine
    processes: Processes
    receiver: subprocess.Popen[bytes]
    received_file: Path
    receiver_port: int

    @property
    def pids(self) -> dict[str, int]:
        """Every process whose CPU is counted, by name."""
        named = dict(self.processes.pids())
        if self.servers.postgres is not None and self.servers.postgres.pid is not None:
            named["postgres"] = self.servers.postgres.pid
        if self.servers.valkey is not None and self.servers.valkey.pid is not None:
            named["valkey"] = self.servers.valkey.pid
        return named | {"receiver": self.receiver.pid}

    async def make_endpoints(self) -> None:
        """One endpoint for each of the types `bench.0` and up."""
        keys = SecretKeys.load(self.settings, embedded=True)
        async with self.engine.begin() as connection:
            for n in range(ENDPOINTS):
                await create_endpoint(
                    connection,
                    keys,
                    tenant_id="default",
                    url=f"http://127.0.0.1:{self.receiver_port}/{n}",
                    event_types=[f"bench.{n}"],
                    actor="bench",
                )

    async def commit(self, count: int, payload_bytes: int) -> None:
        """Commit `count` events at once, spread over the endpoints."""
        async with self.engine.begin() as connection:
            await connection.execute(
                text(
                    """
                    INSERT INTO outbox_events (event_type, payload)
                    SELECT 'bench.' || n % :endpoints, jsonb_build_object('n', n, 'pad', repeat('x', :pad))
                    FROM generate_series(1, :count) AS n
                    """
                ),
                {"count": count, "endpoints": ENDPOINTS, "pad": max(0, payload_bytes - 30)},
            )

    async def recorded(self) -> int:
        """Deliveries whose result is committed."""
        async with self.engine.connect() as connection:
            row = await connection.execute(text("SELECT count(*) FROM deliveries WHERE state = 'delivered'"))
            return int(row.scalar_one())

    def received(self) -> dict[str, float]:
        """Stop the receiver; when each webhook-id first arrived (seconds, UTC)."""
        self.receiver.send_signal(signal.SIGTERM)
        self.receiver.wait(10)
        first: dict[str, float] = {}
        for line in self.received_file.read_text(encoding="ascii").splitlines():
            name, _, at = line.partition(" ")
            first.setdefault(name, float(at))
        return first


@contextmanager
def stage(*, workers: int, delay_ms: float = 0) -> Iterator[Stage]:
    """Start everything but the poller and the workers' load; stop and erase everything at the end."""
    home = Path(tempfile.mkdtemp(prefix="homing-bench-"))
    with ExitStack() as end:
        end.callback(shutil.rmtree, home, ignore_errors=True)
        settings = load_settings(home=home, database_url=None, redis_url=None, allow_networks=("127.0.0.0/8",))
        servers = ensure_servers(settings)
        if servers.postgres is not None:
            end.callback(servers.postgres.erase)
        end.callback(servers.stop)
        migrate(servers.database_url)
        SecretKeys.load(settings, embedded=True)
        inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("HOMING_")}
        environment = inherited | {
            "HOMING_DATABASE_URL": servers.database_url,
            "HOMING_REDIS_URL": servers.redis_url,
            "HOMING_SECRET_KEYS_FILE": str(home / "secret_keys"),
            "HOMING_ALLOW_NETWORKS": "127.0.0.0/8",
            "HOMING_METRICS_PORT": "0",
        }
        received = home / "received.txt"
        receiver = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "workers.bench.receiver", str(received), str(delay_ms)],
            stdout=subprocess.PIPE,
            env=inherited | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        end.callback(_end, receiver)
        assert receiver.stdout is not None
        port = int(receiver.stdout.readline())
        processes = end.enter_context(Processes(environment, home))
        for n in range(workers):
            processes.start(f"worker-{n + 1}", "worker")
        engine = make_engine(servers.database_url, name="bench", pool_size=8)
        yield Stage(servers, settings, engine, processes, receiver, received, port)


def _end(receiver: subprocess.Popen[bytes]) -> None:
    receiver.kill()
    receiver.wait()
    if receiver.stdout is not None:
        receiver.stdout.close()
