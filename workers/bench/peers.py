"""The peers that Homing is compared with: what a user would write instead, installed apart, on the same stage.

Each is a folder of `tests/benchmarks/peers` with a `peer.toml` (`Plan`), its own pinned dependencies and its programs.
`python -m workers.bench.peers NAME` tries one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import redis

from app.errors import InvalidInput
from app.signing import new_secret
from workers.bench.rows import Rows
from workers.bench.stage import Stage

DIRECTORY = Path(__file__).parents[2] / "tests" / "benchmarks" / "peers"
CACHE = Path("~/.cache/homing-bench")
#: Limit of one step of an installation.
INSTALL_S = 600.0
READY_S = 60.0
STOP_S = 10.0
_LOCKS = {"python": "requirements.lock", "node": "package-lock.json"}


class PeerNotInstalled(RuntimeError):
    """What a peer needs cannot be had here; the message names the peer and the cause. It is left out, never faked."""


@dataclass(frozen=True)
class Plan:
    """What `peer.toml` says. In the commands, `{concurrency}` and `{name}` are filled in for each process."""

    kind: str
    """`python` or `node`."""
    title: str
    """The peer's name for people."""
    package: str
    """What it is built on; the lock has its version."""
    relay: list[str]
    worker: list[str]
    concurrency: int
    """Tasks under way per worker process, tuned with a receiver that answers at once."""
    concurrency_waiting: int
    """The same with receivers that take their time."""
    prepare: tuple[str, ...] = ()
    """Run to its end when the tables are there, before anything else."""
    ready: str = "worker is ready"
    """What a worker writes when it is ready for work."""


def known(directory: Path = DIRECTORY) -> list[str]:
    """The names of the peers under a folder.

    Raises:
        InvalidInput: there are none, as when Homing was installed without its tests.
    """
    names = sorted(found.parent.name for found in directory.glob("*/peer.toml"))
    if not names:
        raise InvalidInput(f"no peers in {directory}: comparing with them needs a checkout of Homing")
    return names


def plan_of(name: str, directory: Path = DIRECTORY) -> Plan:
    """How a peer is run.

    Raises:
        InvalidInput: there is no peer of this name.
    """
    if name not in (names := known(directory)):
        raise InvalidInput(f"peer {name!r} is not one of {', '.join(names)}")
    return Plan(**tomllib.loads((directory / name / "peer.toml").read_text(encoding="utf-8")))


def version_of(name: str, directory: Path = DIRECTORY) -> str:
    """The locked version of what a peer is built on."""
    plan = plan_of(name, directory)
    lock = (directory / name / _LOCKS[plan.kind]).read_text(encoding="utf-8")
    if plan.kind == "node":
        return str(json.loads(lock)["packages"][f"node_modules/{plan.package}"]["version"])
    return next(line.split()[0] for line in lock.splitlines() if line.startswith(f"{plan.package}==")).split("==")[1]


def install(name: str, directory: Path = DIRECTORY, cache: Path = CACHE) -> Path:
    """Install what a peer's lock names under `cache`, once; the folder that holds it. Takes seconds, blocks.

    Raises:
        InvalidInput: there is no peer of this name.
        PeerNotInstalled: no Node.js, no package index, or a package that does not suit this machine.
    """
    kind, folder = plan_of(name, directory).kind, directory / name
    lock = folder / _LOCKS[kind]
    key = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:12]
    home = cache.expanduser().resolve() / f"{name}-{key}"
    if kind == "node" and not (shutil.which("node") and shutil.which("npm")):
        raise PeerNotInstalled(f"{name} needs Node.js and npm, which are not here")
    if (home / ".installed").exists():
        return home
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    if kind == "python":
        pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        steps = [[sys.executable, "-m", "venv", str(home)], [*pip, "--require-hashes", "-r", str(lock)]]
    else:
        for needed in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(folder / needed, home)
        steps = [["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]]
    for step in steps:
        try:
            subprocess.run(step, cwd=home, check=True, capture_output=True, text=True, timeout=INSTALL_S)  # noqa: S603
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if "error" in line.lower()] or ["no reason was given"]
            raise PeerNotInstalled(f"{name} cannot be installed: {lines[0]}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerNotInstalled(f"{name} cannot be installed: {error}") from error
    (home / ".installed").touch()
    return home


class Peer:
    """A peer on a stage, as `workers.bench.load.System` wants it; made by `peer`."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str], rows: Rows, stage: Stage) -> None:
        self.name = name
        self.rows = rows
        self._plan = plan_of(name, folder.parent)
        self._folder = folder
        self._environment = environment
        self._stage = stage
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def pids(self) -> dict[str, int]:
        """The processes that run, by name. One may have children of its own: those are part of it."""
        return {name: child.pid for name, child in self._children.items() if child.poll() is None}

    async def prepare(self) -> None:
        """Make the tables, and whatever the peer keeps beside them."""
        schema = (self._folder.parent / "schema.sql").read_text(encoding="utf-8")
        async with await psycopg.AsyncConnection.connect(self._environment["PEER_DATABASE_URL"]) as connection:
            await connection.execute(schema.encode())
        if self._plan.prepare:
            child = self._start("prepare", self._plan.prepare)
            if await asyncio.to_thread(child.wait, READY_S):
                raise RuntimeError(f"{self.name} cannot prepare its database; see {self.log_file('prepare')}")

    async def make_endpoints(self, paths: Sequence[str], types: Sequence[str]) -> None:
        """One endpoint for each path at the receiver, with a secret of its own; the n-th gets events of the n-th type."""
        for path, event_type in zip(paths, types, strict=True):
            url = f"http://127.0.0.1:{self._stage.receiver.port}/{path}"
            await self.add_endpoint(event_type, url, new_secret())

    async def add_endpoint(self, event_type: str, url: str, secret: str) -> None:
        """Send events of a type to a URL, signed with this secret (`whsec_...`)."""
        async with await psycopg.AsyncConnection.connect(self._environment["PEER_DATABASE_URL"]) as connection:
            await connection.execute("INSERT INTO endpoints VALUES (%s, %s, %s)", (event_type, url, secret))

    async def start_workers(self, count: int) -> None:
        """Start worker processes and wait until each says that it is ready.

        Raises:
            RuntimeError: one ended, or was not ready within a minute.
        """
        children = {name: self._start(name, self._plan.worker) for name in (f"worker-{n}" for n in range(1, count + 1))}
        deadline = time.monotonic() + READY_S
        for name, child in children.items():
            while self._plan.ready not in self.log_file(name).read_text(encoding="utf-8", errors="replace"):
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} of {self.name} did not start; see {self.log_file(name)}")
                await asyncio.sleep(0.05)

    def start_relay(self, count: int = 1) -> None:
        """Start what moves outbox rows to the workers, and do not wait for it."""
        for n in range(count):
            self._start("relay" if count == 1 else f"relay-{n + 1}", self._plan.relay)

    def log_file(self, name: str) -> Path:
        """Where a process writes."""
        return self._stage.home / f"peer-{name}.log"

    def stop(self) -> None:
        """SIGTERM every process; SIGKILL what is left after 10 s, with everything in its group."""
        for child in self._children.values():
            child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for child in self._children.values():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # not reaped yet, so the group is still its own
                child.wait()

    def _start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        filled = [part.format(concurrency=self._environment["PEER_CONCURRENCY"], name=name) for part in command]
        program = shutil.which(filled[0], path=self._environment["PATH"])
        if program is None:
            raise PeerNotInstalled(f"{self.name} needs {filled[0]}, which is not here")
        with self.log_file(name).open("wb") as log:
            self._children[name] = child = subprocess.Popen(  # noqa: S603
                [program, *filled[1:]],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        return child


@asynccontextmanager
async def peer(stage: Stage, name: str, concurrency: int, directory: Path = DIRECTORY) -> AsyncIterator[Peer]:
    """A peer on a stage, installed, with a database of its own, nothing started; stopped and erased at the end.

    Args:
        concurrency: tasks under way per worker process; see `Plan`.
    """
    installed = await asyncio.to_thread(install, name, directory)
    folder, database = directory / name, f"peer_{name}"
    strange = ("PYTHON", "NODE_", "PEER_DATABASE", "PEER_REDIS", "PEER_CONCURRENCY")
    environment = {key: value for key, value in stage.environment.items() if not key.startswith(strange)} | {
        "PEER_DATABASE_URL": f"{stage.postgres.url.rpartition('/')[0]}/{database}",
        "PEER_REDIS_URL": stage.valkey.url,
        "PEER_CONCURRENCY": str(concurrency),
        "PATH": os.pathsep.join([str(installed / "bin"), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([str(folder), str(directory)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "NODE_PATH": str(installed / "node_modules"),
        "NODE_ENV": "production",
    }
    with psycopg.connect(stage.postgres.url, autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{database}"'.encode())
        try:
            async with Rows(stage.bench_url(database), "outbox") as rows:
                made = Peer(name, folder, environment, rows, stage)
                try:
                    await made.prepare()
                    yield made
                finally:
                    await asyncio.to_thread(made.stop)
        finally:
            server.execute(f'DROP DATABASE "{database}" WITH (FORCE)'.encode())
            with redis.Redis.from_url(stage.valkey.url) as client:
                client.flushdb()


if __name__ == "__main__":
    from workers.bench.peer_trial import main

    main()
