"""Each exit code that the README promises, from the real command line run as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text

from tests.factories import make_delivery
from tests.pipeline import Pipeline, running_pipeline, until
from tests.receiver import Receiver, ok, status

CLOSED = "postgresql://homing:hidden-password@127.0.0.1:1/homing"


class Ran:
    def __init__(self, code: int | None, out: bytes, err: bytes) -> None:
        self.code, self.out, self.err = code, out.decode(), err.decode()


def environment(pipeline: Pipeline, **changed: str) -> dict[str, str]:
    return (
        dict(os.environ)
        | {
            "HOMING_HOME": str(pipeline.settings.home),
            "HOMING_DATABASE_URL": pipeline.running.database_url,
            "HOMING_REDIS_URL": pipeline.running.redis_url,
            "HOMING_SECRET_KEYS_FILE": str(pipeline.settings.home / "secret_keys"),
            "HOMING_ALLOW_NETWORKS": "127.0.0.0/8",
        }
        | changed
    )


async def start(pipeline: Pipeline, *arguments: str, **changed: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workers.cli.main", *arguments),
        env=environment(pipeline, **changed),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # A test run in the background of a shell hands an ignored SIGINT down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


async def homing(pipeline: Pipeline, *arguments: str, **changed: str) -> Ran:
    process = await start(pipeline, *arguments, **changed)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return Ran(process.returncode, out, err)


async def test_codes_0_to_5_and_7_each_come_with_one_line_that_says_why(tmp_path: Path) -> None:
    async with running_pipeline(tmp_path, workers=0, pollers=0) as pipeline:
        delivered = await make_delivery(pipeline.engine, "delivered")
        await _make_reader(pipeline)
        reader = "postgresql://reader:x@" + pipeline.running.database_url.rpartition("@")[2]
        cases: list[tuple[int, tuple[str, ...], dict[str, str], str]] = [
            (0, ("status",), {}, ""),
            (1, ("audit", "verify"), {}, "is not whole"),
            (2, ("deliveries", "list", "--limit", "0"), {}, "--limit"),
            (2, ("status",), {"HOMING_LEASE_S": "1"}, "HOMING_LEASE_S"),
            (3, ("deliveries", "show", str(uuid4())), {}, "has no delivery"),
            (4, ("tenants", "create", "acme"), {"HOMING_DATABASE_URL": reader}, "does not allow it"),
            (5, ("deliveries", "retry", str(delivered.id), "--reason", "test"), {}, "nothing to replay"),
            (7, ("status",), {"HOMING_DATABASE_URL": CLOSED}, "Postgres is away"),
        ]
        await _break_the_audit_trail(pipeline)
        answers = [await homing(pipeline, *arguments, **changed) for _, arguments, changed, _ in cases]
        for (code, arguments, _, why), answer in zip(cases, answers, strict=True):
            assert answer.code == code, (arguments, answer.err)
            assert why in answer.err, arguments
            assert "Traceback" not in answer.err, arguments
            assert "hidden-password" not in answer.err + answer.out


async def test_a_replay_of_which_some_is_not_delivered_exits_with_6_and_says_what_to_do(tmp_path: Path) -> None:
    async with (
        Receiver(ok) as mended,
        Receiver(status(400)) as broken,
        running_pipeline(tmp_path, workers=1) as pipeline,
    ):
        for receiver in (mended, broken):
            endpoint = await pipeline.endpoint(receiver.url)
            await make_delivery(pipeline.engine, "dead_lettered", endpoint_id=endpoint["id"])
        replay = ("dead-letters", "replay", "--class", "http_status", "--execute", "--reason", "test", "--yes")
        partly = await homing(pipeline, *replay)
        assert partly.code == 6, partly.err
        assert "1 resolved, 1 failed" in partly.err
        broken.behaviour = ok
        rest = await homing(pipeline, *replay)
        assert rest.code == 0, rest.err
        assert len(mended.requests) == 1, "what had been delivered was sent again"


async def test_a_followed_replay_that_is_interrupted_exits_with_130_and_can_be_followed_again(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path, workers=0, pollers=0) as pipeline:
        endpoint = await pipeline.endpoint(receiver.url)
        await make_delivery(pipeline.engine, "dead_lettered", endpoint_id=endpoint["id"])
        replay = ("dead-letters", "replay", "--class", "http_status", "--execute", "--reason", "test", "--yes")
        process = await start(pipeline, *replay)
        assert process.stderr is not None
        while b'"state": "requested"' not in (line := await process.stderr.readline()):
            assert line, "it ended before it followed"
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert process.returncode == 130
        (row,) = await pipeline.rows("SELECT id FROM replays WHERE state = 'requested'")
        assert f"homing replays show {row.id} --wait".encode() in err
        assert b"Traceback" not in err
        assert receiver.requests == []

        pipeline.processes.start("poller", "poller")
        pipeline.processes.start("worker", "worker")
        again = await homing(pipeline, "replays", "show", str(row.id), "--wait")
        assert again.code == 0, again.err
        assert len(receiver.requests) == 1


async def test_an_interrupted_smoke_test_exits_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    async with running_pipeline(tmp_path, workers=0, pollers=0) as pipeline:
        process = await start(pipeline, "smoke")
        await until(lambda: _count(pipeline, "outbox_events", 1))
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert process.returncode == 130, err
        assert b"Traceback" not in err
        for table in ("outbox_events", "endpoints", "endpoint_secrets"):
            assert await _count(pipeline, table, 0), table


async def test_an_interrupted_change_of_the_sealing_key_exits_with_130_and_goes_on_when_asked_again(
    tmp_path: Path,
) -> None:
    async with running_pipeline(tmp_path, workers=0, pollers=0) as pipeline:
        await pipeline.endpoint("http://127.0.0.1:1/")
        with psycopg.connect(pipeline.running.database_url) as connection:
            connection.execute("LOCK TABLE endpoint_secrets IN ACCESS EXCLUSIVE MODE")
            process = await start(pipeline, "secrets", "rotate-key")
            await until(lambda: _waits(pipeline))
            process.send_signal(signal.SIGINT)
            connection.rollback()
            _, err = await process.communicate()
        assert process.returncode == 130, err
        assert b"goes on with it" in err
        assert b"Traceback" not in err
        assert (await homing(pipeline, "secrets", "rotate-key")).code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_poller_that_is_stopped_in_order_exits_with_0(tmp_path: Path, number: signal.Signals) -> None:
    async with running_pipeline(tmp_path, workers=0, pollers=0) as pipeline:
        process = await start(pipeline, "poller", HOMING_METRICS_PORT="0")
        assert process.stdout is not None
        assert process.stderr is not None
        await _told(process, b"poller.started")
        process.send_signal(number)
        await process.communicate()
        assert process.returncode == 0


async def _told(process: asyncio.subprocess.Process, what: bytes) -> None:
    async def read(stream: Any) -> None:
        while what not in (line := await stream.readline()):
            if not line:
                await asyncio.Event().wait()

    readers = {asyncio.create_task(read(stream)) for stream in (process.stdout, process.stderr)}
    _, pending = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED, timeout=30)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


async def _make_reader(pipeline: Pipeline) -> None:
    async with pipeline.engine.begin() as connection:
        await connection.execute(text("CREATE ROLE reader LOGIN PASSWORD 'x'"))
        await connection.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"))


async def _break_the_audit_trail(pipeline: Pipeline) -> None:
    async with pipeline.engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO audit_events (tenant_id, action, subject, actor) VALUES ('default', 'a.b', 's', 'test')")
        )
        await connection.execute(text("SELECT homing_chain_audit(10)"))
        await connection.execute(text("ALTER TABLE audit_events DISABLE TRIGGER ALL"))
        await connection.execute(text("UPDATE audit_events SET actor = 'nobody'"))


async def _count(pipeline: Pipeline, table: str, count: int) -> bool:
    (row,) = await pipeline.rows(f"SELECT count(*) FROM {table}")
    return bool(row.count == count)


async def _waits(pipeline: Pipeline) -> bool:
    return bool(await pipeline.rows("SELECT 1 FROM pg_locks WHERE NOT granted"))
