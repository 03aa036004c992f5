"""`deploy/runbooks/replay.md`, followed word for word: every command in its order, on an installation that is broken for real.

A receiver answers 503, another 410, a worker is killed by a delivery until that is quarantined, Postgres is killed in between.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.backoff import RetryPolicy
from app.migrate import migrate
from tests.pipeline import Pipeline, running_pipeline, until
from tests.receiver import Behaviour, Connection, Receiver, Request, ok, status

RUNBOOK = Path(__file__).parent.parent.parent / "deploy" / "runbooks" / "replay.md"
TWICE = RetryPolicy(max_attempts=2, base_s=0.1, factor=1.0, cap_s=0.1)
WHY = "the receiver was mended"


def commands() -> list[str]:
    """Every command line of the runbook's blocks, without what is said of it."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    lines = [re.split(r"\s{2,}#", line.strip())[0].strip() for block in blocks for line in block.splitlines()]
    return [re.sub(r"\s+# .*", "", line) for line in lines if line]


@dataclass
class Answer:
    code: int
    out: str
    err: str


@dataclass
class Operator:
    """Follows the runbook: the next command must be the one that the test says it is at."""

    pipeline: Pipeline
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=commands)

    async def follow(self, command: str, expect: int = 0, **given: str) -> Answer:
        """Type the runbook's next command with its `ID`, `WHY` and the like filled in."""
        assert self.left.pop(0) == command, "the runbook and this test have parted"
        return await self.type(command, expect, **given)

    async def type(self, command: str, expect: int = 0, **given: str) -> Answer:
        words = shlex.split(command)
        filled = [given.get(word, WHY if word == "WHY" else word) for word in words[1:]]
        assert words[0] == "homing"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "workers.cli.main", *filled),
            env=os.environ
            | {
                "PYTHONPATH": str(RUNBOOK.parent.parent.parent),
                "HOMING_HOME": str(self.folder / "home"),
                "HOMING_DATABASE_URL": self.pipeline.running.database_url,
                "HOMING_REDIS_URL": self.pipeline.running.redis_url,
                "HOMING_SECRET_KEYS_FILE": str(self.pipeline.settings.home / "secret_keys"),
                "HOMING_ALLOW_NETWORKS": "127.0.0.0/8",
                **self.environment,
            },
            cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 90)
        answer = Answer(process.returncode or 0, out.decode(), err.decode())
        assert answer.code == expect, f"{command}: {answer}"
        return answer

    async def ask(self, command: str, **given: str) -> Any:
        return json.loads((await self.type(command + " --json", **given)).out)


@dataclass
class Site:
    """One endpoint and what its receiver does."""

    receiver: Receiver
    endpoint: str


@asynccontextmanager
async def site(pipeline: Pipeline, behaviour: Behaviour, event_type: str) -> AsyncIterator[Site]:
    async with Receiver(behaviour) as receiver:
        made = await pipeline.endpoint(receiver.url, policy=TWICE, event_types=(event_type,))
        yield Site(receiver, str(made["id"]))


async def silent_until_closed(request: Request, connection: Connection) -> None:
    await connection.closing.wait()


@pytest.mark.timeout(480)  # some fifty commands, each a process
async def test_every_command_of_the_runbook_does_what_it_says_on_a_broken_installation(tmp_path: Path) -> None:
    async with (
        running_pipeline(tmp_path, workers=1, quarantine_after=1) as pipeline,
        site(pipeline, status(503), "invoice.paid") as down,
        site(pipeline, status(410), "invoice.gone") as gone,
        site(pipeline, silent_until_closed, "invoice.poison") as poison,
    ):
        operator = Operator(pipeline, tmp_path)
        await _break(pipeline, gone, poison)

        # 1. Before you start
        assert "dead letters open" in (await operator.follow("homing status")).err
        await operator.follow("homing doctor")

        # 3. Look
        groups = (await operator.follow("homing dead-letters groups")).out
        assert all(one.endpoint in groups for one in (down, gone, poison))
        await operator.follow("homing dead-letters list --status open --limit 20")
        letters = await operator.ask("homing dead-letters list --status open")
        assert {(letter["failure_class"], letter["last_http_status"]) for letter in letters} == {
            ("http_status", 503),
            ("gone", 410),
            ("quarantined", None),
        }
        letter = next(one for one in letters if one["endpoint_id"] == down.endpoint)
        assert letter["delivery_id"] in (await operator.follow("homing dead-letters show ID", ID=letter["id"])).out
        shown = (await operator.follow("homing deliveries show ID", ID=letter["delivery_id"])).out
        assert shown.count("503") >= 2, "both attempts are told"
        await operator.follow("homing endpoints pause ID --reason WHY", ID=down.endpoint)
        await operator.follow("homing endpoints resume ID --reason WHY", ID=down.endpoint)

        # 4. Replay: Postgres dies between the look and the act
        down.receiver.behaviour = ok
        look = "homing dead-letters replay --endpoint ID --look-back-minutes 120"
        assert "20 would be sent again" in (await operator.follow(look, ID=down.endpoint)).err
        await _postgres_is_away(operator, down)
        await operator.follow("homing deliveries retry ID --reason WHY", ID=letter["delivery_id"])
        await until(lambda: _resolved(pipeline, down, 1))
        shown = (await operator.follow("homing deliveries show ID", ID=letter["delivery_id"])).out
        assert "delivered" in shown
        await operator.follow(f"{look} --execute --reason WHY --yes", ID=down.endpoint)
        assert await _resolved(pipeline, down, 20)
        replay = (await operator.ask("homing replays list"))[0]["replay_id"]
        assert replay in (await operator.follow("homing replays list")).out
        await operator.follow("homing replays show ID --wait", ID=replay)

        # 2. What is done by you, for 410 and quarantine: ask the owner, resume, replay
        gone.receiver.behaviour = poison.receiver.behaviour = ok
        assert (await operator.ask("homing endpoints show ID", ID=gone.endpoint))["status"] == "disabled"
        await operator.type("homing endpoints resume ID --reason WHY", ID=gone.endpoint)
        await operator.type(f"{look} --execute --reason WHY --yes", ID=gone.endpoint)
        assert await _resolved(pipeline, gone, 1)
        await operator.type("homing dead-letters list --class quarantined")
        await operator.type("homing dead-letters replay --class quarantined --execute --reason WHY --yes")
        assert await _resolved(pipeline, poison, 1)

        # 6. Stop: a replay of the wrong thing, slow enough to be caught
        down.receiver.behaviour = status(503)
        await pipeline.publish(20, event_type="invoice.paid", request_id="order-4712")
        await until(lambda: _open_letters(pipeline, 20))
        await operator.type(f"{look} --execute --reason WHY --yes --no-wait --rate 0.5", ID=down.endpoint)
        wrong = (await operator.ask("homing replays list"))[0]["replay_id"]
        await operator.follow("homing replays cancel ID --reason WHY", ID=wrong)
        await operator.follow("homing endpoints pause ID --reason WHY", ID=down.endpoint)
        stopped = await operator.ask("homing replays show ID", ID=wrong)
        assert stopped["state"] == "cancelled"
        assert stopped["cancelled"] >= 15, "what waited stays a dead letter"
        trail = (await operator.follow("homing audit list --limit 200")).out
        assert "delivery.replayed" in trail
        assert letter["delivery_id"] in trail

        # 8. Audit
        trail = (await operator.follow("homing audit list --request-id ID", ID=letter["request_id"])).out
        assert "delivery.reprocess_succeeded" in trail
        await until(lambda: _chained(operator))
        await operator.follow("homing audit verify")
        kept = await _head_from_the_log(pipeline)
        await operator.follow("homing audit verify --head SEQ:HASH", **{"SEQ:HASH": kept})
        await _grants_as_written(pipeline)

        # 9. Prove that all this works
        await operator.follow("homing smoke")
        await operator.follow("homing dead-letters drill")
        other = await _another_database(pipeline)
        operator.environment = {"DEV_URL": pipeline.running.database_url, "STAGING_URL": other}
        await operator.follow(
            "homing dead-letters drill --matrix dev=@DEV_URL --matrix staging=@STAGING_URL --report drill.md"
        )
        assert "staging" in (tmp_path / "drill.md").read_text()
        assert operator.left == [], "commands that were not tried"

        # 8, once more: somebody edits a row
        async with pipeline.engine.begin() as connection:
            await connection.exec_driver_sql("ALTER TABLE audit_events DISABLE TRIGGER ALL")
            await connection.exec_driver_sql("UPDATE audit_events SET actor = 'nobody' WHERE seq = 1")
        await operator.type("homing audit verify", expect=1)


async def _break(pipeline: Pipeline, gone: Site, poison: Site) -> None:
    await pipeline.publish(20, event_type="invoice.paid")
    await pipeline.publish(1, event_type="invoice.gone", request_id="gone-1")
    await until(lambda: _open_letters(pipeline, 21))
    await pipeline.publish(1, event_type="invoice.poison", request_id="poison-1")
    await until(lambda: _true(bool(poison.receiver.requests)))
    pipeline.processes.kill("worker0")
    pipeline.processes.start("worker0", "worker")
    await until(lambda: _open_letters(pipeline, 22))


async def _postgres_is_away(operator: Operator, down: Site) -> None:
    """Everything waits, every command says so with exit code 7, and what is asked for again is done once."""
    postgres = operator.pipeline.running.postgres
    assert postgres is not None
    ask = "homing dead-letters replay --endpoint ID --execute --reason WHY --yes --max 1 --idempotency-key K"
    await asyncio.to_thread(postgres.kill)
    for command in ("homing status", "homing dead-letters groups", ask):
        assert "Postgres is away" in (await operator.type(command, expect=7, ID=down.endpoint)).err
    await asyncio.to_thread(postgres.start)
    doctor = await operator.type("homing doctor")
    assert "fail" not in doctor.out
    found = await operator.ask("homing dead-letters list --status open")
    assert len(found) == 22


async def _head_from_the_log(pipeline: Pipeline) -> str:
    """A new poller logs the heads when it starts; one that runs, every ten minutes."""
    pipeline.processes.start("poller1", "poller")

    async def logged() -> str | None:
        for line in pipeline.log("poller1").splitlines():
            if "audit.head" in line and '"default"' in line:
                head = json.loads(line)
                return f"{head['seq']}:{head['hash']}"
        return None

    return str(await until(logged))


async def _grants_as_written(pipeline: Pipeline) -> None:
    (block,) = re.findall(r"```sql\n(.*?)```", RUNBOOK.read_text(), re.DOTALL)
    async with pipeline.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE ROLE homing_app")
        for statement in filter(str.strip, block.split(";")):
            await connection.exec_driver_sql(statement)


async def _another_database(pipeline: Pipeline) -> str:
    async with pipeline.engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.exec_driver_sql("CREATE DATABASE staging")
    url = pipeline.running.database_url.rpartition("/")[0] + "/staging"
    await asyncio.to_thread(migrate, url)
    return url


async def _true(value: bool) -> bool:
    return value


async def _open_letters(pipeline: Pipeline, count: int) -> bool:
    (row,) = await pipeline.rows("SELECT count(*) FROM dead_letters WHERE status = 'open'")
    return bool(row.count == count)


async def _resolved(pipeline: Pipeline, one: Site, count: int) -> bool:
    sql = "SELECT count(*) FROM dead_letters WHERE status = 'resolved' AND endpoint_id = :id"
    (row,) = await pipeline.rows(sql, id=one.endpoint)
    return bool(row.count == count)


async def _chained(operator: Operator) -> bool:
    return bool((await operator.ask("homing audit verify"))["unchained"] == 0)
