"""Where the benchmark runs: fresh embedded servers with fsync on and a receiver process, on one machine."""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from app.embedded import EmbeddedPostgres, EmbeddedValkey
from workers.bench.receiver import COUNTER_BYTES

#: On top of PostgreSQL's defaults, for what is measured: every statement is counted, every row knows when its transaction
#: was committed. Both cost a little, and cost every system on the stage the same.
POSTGRES_SETTINGS: dict[str, str | int] = {
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track_planning": "off",
    "track_commit_timestamp": "on",
    "max_wal_size": "4GB",
    "min_wal_size": "1GB",
}

#: The role that the benchmark itself connects as.
BENCH_ROLE = "bench"


@dataclass
class Receiver:
    """The receiving process; `port` on loopback."""

    process: subprocess.Popen[bytes]
    port: int
    _log: Path
    _counter: mmap.mmap

    @property
    def count(self) -> int:
        """Requests received so far; costs neither process anything to speak of."""
        return int.from_bytes(self._counter[:COUNTER_BYTES], sys.byteorder)

    def so_far(self) -> dict[str, float]:
        """When each webhook-id first arrived (seconds, UTC), except on paths that fail or hang on purpose."""
        self._log.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        while not self._log.exists():
            if self.process.poll() is not None:
                raise RuntimeError("the receiver has ended")
            time.sleep(0.01)
        first: dict[str, float] = {}
        for line in self._log.read_text(encoding="ascii").splitlines():
            name, _, at = line.partition(" ")
            first.setdefault(name, float(at))
        return first


@dataclass
class Stage:
    """What a system plays on. Nothing of it outlives the `with` block of `stage`."""

    home: Path
    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey
    receiver: Receiver
    delay_ms: float
    """How long the receiver takes to answer."""
    environment: dict[str, str]
    """For child processes: this process's own without any setting of Homing."""
    _bench_password: str

    def bench_url(self, database: str = "homing") -> str:
        """Where the benchmark itself connects: as a role of its own, so that what it asks is not counted."""
        return f"postgresql://{BENCH_ROLE}:{self._bench_password}@127.0.0.1:{self.postgres.port}/{database}"

    @property
    def pids(self) -> dict[str, int]:
        """The processes that every system uses, by name."""
        pids = {"postgres": self.postgres.pid, "valkey": self.valkey.pid, "receiver": self.receiver.process.pid}
        return {name: pid for name, pid in pids.items() if pid is not None}


@contextmanager
def stage(*, delay_ms: float = 0) -> Iterator[Stage]:
    """Start both servers and a receiver that answers after `delay_ms`; stop and erase everything at the end."""
    home = Path(tempfile.mkdtemp(prefix="homing-bench-"))
    with ExitStack() as end:
        end.callback(shutil.rmtree, home, ignore_errors=True)
        postgres = EmbeddedPostgres(home, extra_settings=POSTGRES_SETTINGS)
        end.callback(postgres.erase)
        postgres.start()
        password = secrets.token_hex(16)
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {BENCH_ROLE} SUPERUSER LOGIN PASSWORD '{password}'")
            connection.execute("CREATE EXTENSION pg_stat_statements")
        valkey = EmbeddedValkey(home)
        end.callback(valkey.stop)
        valkey.start()
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("HOMING_")}
        receiver = end.enter_context(_receiver(home, environment, delay_ms))
        yield Stage(home, postgres, valkey, receiver, delay_ms, environment, password)


@contextmanager
def _receiver(home: Path, environment: dict[str, str], delay_ms: float) -> Iterator[Receiver]:
    log, counter = home / "received.txt", home / "received.count"
    counter.write_bytes(bytes(COUNTER_BYTES))
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-m", "workers.bench.receiver", str(log), str(counter), str(delay_ms)],
        stdout=subprocess.PIPE,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with counter.open("r+b") as file, mmap.mmap(file.fileno(), COUNTER_BYTES) as count:
            yield Receiver(process, port, log, count)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
