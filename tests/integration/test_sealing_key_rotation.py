"""`homing secrets`: every endpoint secret sealed again with the current key, completely, repeatably, under way."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from app.db import make_unpooled_engine
from app.endpoints import load_endpoints
from app.rotation import reseal_all
from app.sealing import SecretKeys
from tests.conftest import Servers
from tests.factories import rows
from tests.integration.command_line import CommandLine, command_line
from tests.pipeline import running_pipeline, until
from tests.receiver import Receiver, Request, ok

OLD, NEW, LOST = (bytes(range(n, n + 32)) for n in (1, 100, 200))


def as_text(*keys: bytes) -> str:
    return ",".join(b64encode(key).decode() for key in keys)


def id_of(key: bytes) -> str:
    return SecretKeys([key]).current_key_id


@pytest.fixture
def homing(servers: Servers, tmp_path: Path) -> Iterator[CommandLine]:
    with command_line(servers, tmp_path) as cli:
        cli.environment["HOMING_SECRET_KEYS"] = as_text(OLD)
        yield cli


@pytest.fixture
def sealed_by_old(homing: CommandLine) -> list[str]:
    """Five endpoints whose secrets the old key has sealed; the command line has a new first key from now on."""
    ids = [homing.make_endpoint() for _ in range(5)]
    homing.environment["HOMING_SECRET_KEYS"] = as_text(NEW, OLD)
    return ids


def test_after_the_rotation_every_secret_opens_without_the_old_key(
    homing: CommandLine, sealed_by_old: list[str]
) -> None:
    assert homing.ok("secrets", "rotate-key") == {
        "current_key_id": id_of(NEW),
        "resealed": 5,
        "already_current": 0,
        "unopened": 0,
        "held": 0,
        "missing_keys": {},
        "damaged": [],
    }
    homing.environment["HOMING_SECRET_KEYS"] = as_text(NEW)
    checks = {check["name"]: check for check in json.loads(homing("doctor", "--json").out)["checks"]}
    assert checks["endpoint secrets"]["found"] == "all 5 open"


def test_a_second_run_writes_nothing(homing: CommandLine, sealed_by_old: list[str]) -> None:
    homing.ok("secrets", "rotate-key")
    stored = homing.sql("SELECT id, sealed, xmin::text FROM endpoint_secrets ORDER BY id")
    again = homing.ok("secrets", "rotate-key")
    assert (again["resealed"], again["already_current"]) == (0, 5)
    assert homing.sql("SELECT id, sealed, xmin::text FROM endpoint_secrets ORDER BY id") == stored


def test_status_counts_secrets_by_key(homing: CommandLine, sealed_by_old: list[str]) -> None:
    homing.make_endpoint()
    homing.sql("UPDATE endpoint_secrets SET expires_at = now() WHERE endpoint_id = %(id)s", id=sealed_by_old[0])
    homing.sql("UPDATE endpoint_secrets SET sealed = 'plain' WHERE endpoint_id = %(id)s", id=sealed_by_old[1])
    assert homing.ok("secrets", "status") == [
        {"key_id": id_of(NEW), "secrets": 1, "signing": 1, "known": True, "current": True},
        {"key_id": id_of(OLD), "secrets": 4, "signing": 3, "known": True, "current": False},
        {"key_id": "unreadable", "secrets": 1, "signing": 1, "known": False, "current": False},
    ]


def test_a_missing_key_is_named_and_the_rest_is_done(homing: CommandLine, sealed_by_old: list[str]) -> None:
    homing.environment["HOMING_SECRET_KEYS"] = as_text(LOST)
    homing.make_endpoint()
    homing.environment["HOMING_SECRET_KEYS"] = as_text(NEW, OLD)
    answer = homing("secrets", "rotate-key", "--json")
    assert answer.code == 6
    assert answer.json["resealed"] == 5
    assert answer.json["missing_keys"] == {id_of(LOST): 1}
    assert id_of(LOST) in answer.err
    homing.environment["HOMING_SECRET_KEYS"] = as_text(NEW, LOST)
    assert homing.ok("secrets", "rotate-key")["resealed"] == 1


def test_damaged_secrets_are_left_alone_and_named(homing: CommandLine, sealed_by_old: list[str]) -> None:
    homing.sql(
        "UPDATE endpoint_secrets SET sealed = set_byte(sealed, 40, get_byte(sealed, 40) # 1) WHERE endpoint_id = %(id)s",
        id=sealed_by_old[0],
    )
    homing.sql("UPDATE endpoint_secrets SET sealed = 'plain' WHERE endpoint_id = %(id)s", id=sealed_by_old[1])
    damaged = homing.sql(
        "SELECT id, sealed FROM endpoint_secrets WHERE endpoint_id = ANY(%(ids)s::uuid[]) ORDER BY id",
        ids=sealed_by_old[:2],
    )
    answer = homing("secrets", "rotate-key", "--json")
    assert answer.code == 6
    assert answer.json["resealed"] == 3
    assert answer.json["damaged"] == [str(row["id"]) for row in damaged]
    after = homing.sql(
        "SELECT id, sealed FROM endpoint_secrets WHERE id = ANY(%(ids)s) ORDER BY id", ids=[r["id"] for r in damaged]
    )
    assert after == damaged


def test_what_another_transaction_holds_is_not_waited_for_and_told(
    homing: CommandLine, sealed_by_old: list[str]
) -> None:
    with psycopg.connect(homing.database_url) as other:
        other.execute("SELECT 1 FROM endpoint_secrets WHERE endpoint_id = %s FOR UPDATE", (sealed_by_old[2],))
        answer = homing("secrets", "rotate-key", "--json")
    assert answer.code == 6
    assert (answer.json["resealed"], answer.json["held"]) == (4, 1)
    assert homing.ok("secrets", "rotate-key")["resealed"] == 1


async def test_an_interrupted_run_is_finished_by_the_next(homing: CommandLine, sealed_by_old: list[str]) -> None:
    keys = SecretKeys([NEW, OLD])
    engine: AsyncEngine = make_unpooled_engine(homing.database_url, name="test")
    first = reseal_all(engine, keys, batch=2)
    assert (await anext(first)).resealed == 2
    await first.aclose()
    progress = [step async for step in reseal_all(engine, keys, batch=2)][-1]
    assert (progress.already_current, progress.resealed, progress.left) == (2, 3, 0)
    async with engine.connect() as connection:
        ids = [r.id for r in await connection.exec_driver_sql("SELECT id FROM endpoints")]
        assert len(await load_endpoints(connection, SecretKeys([NEW]), ids)) == 5


def test_progress_is_json_lines_where_nobody_looks_at_a_bar(homing: CommandLine, sealed_by_old: list[str]) -> None:
    answer = homing("secrets", "rotate-key", "--json")
    first = json.loads(answer.err.splitlines()[0])
    assert first == {"progress": {"done": 5, "of": 5, "resealed": 5}}


def test_no_key_is_made_where_the_keys_are_given(homing: CommandLine, sealed_by_old: list[str]) -> None:
    answer = homing("secrets", "rotate-key", "--new-key", "--json")
    assert answer.code == 2
    assert "second one" in answer.error["message"]
    assert homing.ok("secrets", "status")[1]["secrets"] == 5, "nothing was sealed again"


def test_a_worker_of_external_servers_does_not_start_without_a_key(homing: CommandLine) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOMING_")}
    environment |= homing.environment
    del environment["HOMING_SECRET_KEYS"]
    worker = subprocess.run(
        [sys.executable, "-m", "workers.cli.main", "worker"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert worker.returncode == 2
    assert "HOMING_SECRET_KEYS is not set" in worker.stderr
    assert "HOMING_SECRET_KEYS_FILE" in worker.stderr
    assert "Traceback" not in worker.stderr


async def test_a_new_key_is_taken_up_by_workers_that_run(tmp_path: Path) -> None:
    """The embedded default: the old endpoint stays in the worker's cache, the new one is sealed with a key it never saw."""
    async with Receiver(ok) as receiver, running_pipeline(tmp_path, workers=1) as pipeline:
        before = await pipeline.endpoint(receiver.url, event_types=("before",))
        await pipeline.publish(event_type="before")
        await pipeline.all_in("delivered", 1)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HOMING_")}
        rotation = subprocess.run(
            [sys.executable, "-m", "workers.cli.main", "secrets", "rotate-key", "--new-key", "--json"],
            env=environment | {"HOMING_HOME": str(pipeline.settings.home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert rotation.returncode == 0, rotation.stderr
        old, pipeline.keys = pipeline.keys.current_key_id, SecretKeys.load(pipeline.settings, embedded=True)
        done = json.loads(rotation.stdout)
        assert done["resealed"] == 1
        assert done["current_key_id"] == pipeline.keys.current_key_id != old
        assert stat.S_IMODE((pipeline.settings.home / "secret_keys").stat().st_mode) == 0o600
        after = await pipeline.endpoint(receiver.url, event_types=("after",))
        await pipeline.publish(event_type="before")
        await pipeline.publish(event_type="after")
        await pipeline.all_in("delivered", 3)
        await until(lambda: _arrived(receiver, 3))
        for secret, count in ((before["secret"], 2), (after["secret"], 1)):
            assert sum(_signed_by(request, secret) for request in receiver.requests) == count


def _signed_by(request: Request, secret: str) -> bool:
    try:
        Webhook(secret).verify(request.body, request.headers)
    except WebhookVerificationError:
        return False
    return True


async def _arrived(receiver: Receiver, count: int) -> bool:
    return len(receiver.requests) >= count


async def test_secret_that_no_key_opens_holds_up_no_other_endpoint_and_uses_up_no_attempt(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path, workers=1) as pipeline:
        await pipeline.endpoint(receiver.url)
        unreadable = await pipeline.endpoint(receiver.url)
        await rows(
            pipeline.engine,
            "UPDATE endpoint_secrets SET sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1) WHERE endpoint_id = :id",
            id=unreadable["id"],
        )
        await pipeline.publish()

        async def both_tried() -> bool:
            return await pipeline.states() == {"delivered": 1, "retry_scheduled": 1}

        await until(both_tried)
        (row,) = await pipeline.rows("SELECT * FROM deliveries WHERE state = 'retry_scheduled'")
        assert (row.attempts, row.last_class) == (0, "own_fault")
        assert "HOMING_SECRET_KEYS" in row.last_error
        assert len(receiver.requests) == 1
