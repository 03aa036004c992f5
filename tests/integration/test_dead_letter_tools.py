"""What an operator types against dead letters: shown first, refused when large, carried out, followed, stopped, proven."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import Servers
from tests.integration.command_line import CommandLine, command_line
from tests.pipeline import Pipeline, running_pipeline
from tests.receiver import Receiver, ok, status
from workers.cli.matrix import parse_targets

EXECUTE = ("--execute", "--reason", "receiver mended", "--yes", "--no-wait")


@pytest.fixture(scope="module")
def shared(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with command_line(servers, tmp_path_factory.mktemp("tools")) as line:
        yield line


@pytest.fixture
def homing(shared: CommandLine) -> CommandLine:
    """On a database without deliveries; its audit trail may hold what earlier tests did."""
    shared.sql("TRUNCATE deliveries, delivery_attempts, dead_letters, replay_items, replays, events")
    return shared


@pytest.fixture
def letters(homing: CommandLine) -> str:
    """Sixty open dead letters; the id of their endpoint."""
    endpoint = homing.make_endpoint()
    homing.sql(
        """
        WITH e AS (
            INSERT INTO events (id, tenant_id, event_type, body, request_id, created_at)
            SELECT homing_uuid7(), 'default', 'invoice.paid', '{}', 'req-' || n, now() FROM generate_series(1, 60) AS n
            RETURNING *
        ), d AS (
            INSERT INTO deliveries (tenant_id, event_id, endpoint_id, state, due_at, generation, attempts, last_attempt_at,
                                    last_class, last_status, failed_at)
            SELECT 'default', id, %(endpoint)s, 'dead_lettered', NULL, 1, 5, now(), 'http_status', 503, now() FROM e
            RETURNING *
        )
        INSERT INTO dead_letters (delivery_id, generation, tenant_id, endpoint_id, event_id, event_type, request_id, payload,
                                  failure_class, last_http_status, attempts)
        SELECT d.id, 1, 'default', d.endpoint_id, d.event_id, 'invoice.paid', e.request_id, '{}', 'http_status', 503, 5
        FROM d JOIN e ON e.id = d.event_id
        """,
        endpoint=endpoint,
    )
    return endpoint


def test_a_replay_is_a_dry_run_unless_told_otherwise(homing: CommandLine, letters: str) -> None:
    answer = homing("dead-letters", "replay", "--endpoint", letters, "--json")
    assert answer.code == 0
    assert (answer.json["count"], answer.json["dry_run"]) == (60, True)
    assert answer.json["endpoints"] == [{"endpoint_id": letters, "count": 60}]
    assert "60 would be sent again" in answer.err
    assert homing.sql("SELECT count(*) FROM replays") == [{"count": 0}]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "say which"),
        (("--type", "invoice.*", "--execute", "--yes"), 2, "--reason"),
        (("--type", "invoice.*", "--execute", "--reason", "r"), 2, "add --yes"),
        (("--type", "invoice.*", "--concurrency", "11"), 2, "--allow-high-concurrency"),
        (("--type", "invoice.*", "--concurrency", "21", "--allow-high-concurrency"), 2, "21 is not from 1 to 20"),
        (("--type", "*"), 2, "event_type"),
        (("--job", "a", "--run", "b"), 2, "two names of one thing"),
        (("--type", "nothing.*", *EXECUTE), 3, "no open dead letter"),
        (("--type", "invoice.*", "--rate", "0"), 2, "rate"),
    ],
)
@pytest.mark.usefixtures("letters")
def test_what_cannot_be_done_is_refused_and_changes_nothing(
    homing: CommandLine, arguments: tuple[str, ...], code: int, said: str
) -> None:
    answer = homing("dead-letters", "replay", *arguments)
    assert (answer.code, said in answer.err) == (code, True), answer.err
    assert homing.sql("SELECT count(*) FROM replays") == [{"count": 0}]


HIGH = ("--concurrency", "20", "--allow-high-concurrency")


@pytest.mark.usefixtures("letters")
def test_the_guard_refuses_a_large_match_at_high_concurrency_and_says_why(homing: CommandLine) -> None:
    answer = homing("dead-letters", "replay", "--type", "invoice.*", *HIGH, *EXECUTE, "--json")
    assert answer.code == 5
    for said in ("60 dead letters match", "concurrency is 20", "threshold is 50", "--confirm-large"):
        assert said in answer.error["message"]
    assert homing.sql("SELECT count(*) FROM replays") == [{"count": 0}]
    dry = homing("dead-letters", "replay", "--type", "invoice.*", *HIGH)
    assert (dry.code, "with --execute this is refused: 60 dead letters match" in dry.err) == (0, True)


@pytest.mark.usefixtures("letters")
def test_the_threshold_is_set_by_option_or_environment(homing: CommandLine) -> None:
    replay = ("dead-letters", "replay", "--type", "invoice.*", *HIGH, *EXECUTE)
    assert homing(*replay, "--confirm-threshold", "60").code == 5
    assert homing(*replay, HOMING_REPLAY_CONFIRM_THRESHOLD="60").code == 5
    assert homing(*replay, HOMING_REPLAY_CONFIRM_THRESHOLD="61").code == 0


@pytest.mark.usefixtures("letters")
def test_a_confirmed_replay_is_written_down_shown_and_cancelled(homing: CommandLine) -> None:
    asked = homing.ok(
        "dead-letters", "replay", "--type", "invoice.*", *HIGH, *EXECUTE, "--confirm-large", "--max", "55"
    )
    assert (asked["matched"], asked["items"], asked["skipped"]) == (60, 55, {"over_max_items": 5})
    replay_id = asked["replay_id"]
    assert homing.ok("replays", "show", replay_id)["waiting"] == 55
    assert [row["replay_id"] for row in homing.ok("replays", "list", "--state", "requested")] == [replay_id]
    assert homing("replays", "cancel", replay_id).code == 2
    stopped = homing.ok("replays", "cancel", replay_id, "--reason", "wrong endpoint")
    assert (stopped["state"], stopped["cancelled"]) == ("cancelled", 55)
    assert homing("replays", "cancel", replay_id, "--reason", "again").code == 5
    assert homing("replays", "show", "00000000-0000-4000-8000-000000000000").code == 3
    acts = homing.ok("audit", "list")[:2]
    assert [row["action"] for row in acts] == ["replay.cancelled", "replay.requested"]


@pytest.mark.usefixtures("letters")
def test_the_same_key_is_carried_out_once_and_a_grown_set_is_refused(homing: CommandLine) -> None:
    replay = ("dead-letters", "replay", "--type", "invoice.*", *EXECUTE)
    assert homing(*replay, "--expected-count", "50").code == 5
    first = homing.ok(*replay, "--idempotency-key", "k")
    assert homing.ok(*replay, "--idempotency-key", "k")["replay_id"] == first["replay_id"]
    assert homing(*replay, "--idempotency-key", "k", "--rate", "5").code == 5


def test_failures_are_grouped(homing: CommandLine, letters: str) -> None:
    (group,) = homing.ok("dead-letters", "groups", "--endpoint", letters)
    assert (group["count"], group["http_status"], len(group["samples"])) == (60, 503, 3)
    assert homing.ok("dead-letters", "groups", "--status", "404") == []


def test_one_delivery_is_retried_with_a_reason(homing: CommandLine) -> None:
    delivery = homing.make_delivery("dead_lettered", request_id="r", endpoint=homing.make_endpoint())
    assert homing("deliveries", "retry", delivery).code == 2
    assert homing.ok("deliveries", "retry", delivery, "--reason", "mended", "--dry-run")["replay_id"] is None
    assert homing.ok("deliveries", "retry", delivery, "--reason", "mended")["request_id"] == "r"
    assert homing("deliveries", "retry", delivery, "--reason", "mended").code == 5


def test_the_audit_trail_is_listed_and_verified(homing: CommandLine) -> None:
    homing.make_endpoint()
    homing.sql("SELECT homing_chain_audit(1000)")
    found = homing.ok("audit", "verify")
    assert (found["ok"], found["unchained"]) == (True, 0)
    head = f"{found['head']['seq']}:{found['head']['hash']}"
    assert homing.ok("audit", "verify", "--head", head)["ok"]
    assert homing("audit", "verify", "--head", f"{found['head']['seq']}:{'0' * 64}").code == 1
    assert homing("audit", "verify", "--head", "nonsense").code == 2
    assert homing.ok("audit", "list", "--request-id", "nobody's") == []


# --- drills and smoke tests ------------------------------------------------------------------------------------------


def left_over(homing: CommandLine) -> list[Any]:
    tables = ("endpoints", "dead_letters", "deliveries", "delivery_attempts", "replays", "events", "outbox_events")
    return [homing.sql(f"SELECT * FROM {t} WHERE tenant_id LIKE 'homing-%%' AND %(x)s = 1", x=1) for t in tables]


def test_a_drill_proves_the_guard_and_the_replay_and_leaves_nothing(homing: CommandLine) -> None:
    (result,) = homing.ok("dead-letters", "drill", "--count", "55")
    assert result["ok"]
    assert [step["name"] for step in result["steps"]] == [
        "sample dead letters are filed",
        "the guard refuses",
        "the refusal changes nothing",
        "the confirmed replay is taken",
        "rows are due again, counters zero",
        "every sample is resolved by its delivery",
        "the records are gone (--delete-after)",
        "the audit trail is whole",
        "everything is taken away",
    ]
    assert not any(left_over(homing))


def test_a_drill_fails_when_the_guard_lets_everything_through(
    homing: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.replay_guard.check_replay", lambda **_: None)
    answer = homing("dead-letters", "drill", "--count", "3", "--json")
    assert answer.code == 1
    assert [step["name"] for step in answer.json[0]["steps"] if not step["ok"]][:1] == ["the guard refuses"]
    assert not any(left_over(homing))


def test_a_drill_matrix_reports_every_target_and_no_secret(homing: CommandLine, tmp_path: Path) -> None:
    report = tmp_path / "drill.md"
    url, away = homing.database_url, "postgresql://homing:hidden-password@127.0.0.1:1/homing"
    answer = homing(
        *("dead-letters", "drill", "--count", "3", "--report", str(report)),
        *("--matrix", f"dev={url}", "--matrix", "staging=@STAGING_URL"),
        STAGING_URL=f"{away}|redis://:other-password@127.0.0.1:1/0",
    )
    assert answer.code == 6
    text = report.read_text()
    assert "1 of 2 targets good" in text
    assert "| dev | good | 9 of 9 |" in text
    assert "| staging | **failed** | 0 of 1 |" in text
    password = psycopg.conninfo.conninfo_to_dict(url).get("password") or "hidden-password"
    for secret in ("hidden-password", "other-password", str(password), "postgresql://"):
        assert secret not in text + answer.out + answer.err


@pytest.mark.parametrize(
    "text",
    ["nothing", "=x", "a=mysql://x", "a=postgresql://h/d|http://x", "a=@HOMING_TEST_NOT_SET", "a b=postgresql://h/d"],
)
def test_a_target_that_cannot_be_read_is_refused_without_repeating_it(homing: CommandLine, text: str) -> None:
    answer = homing("smoke", "--matrix", text)
    assert answer.code == 2
    assert "://x" not in answer.err


def test_a_target_never_shows_its_urls() -> None:
    (target,) = parse_targets(["dev=postgresql://u:hidden@h/d|redis://:hidden@h/0|/run/keys"])
    assert "hidden" not in repr(target)
    assert target.secret_keys_file == Path("/run/keys")


def test_a_smoke_test_of_what_does_not_run_fails_says_why_and_cleans_up(homing: CommandLine) -> None:
    answer = homing("smoke", "--timeout", "0.3", "--json")
    assert answer.code == 1
    assert "homing poller" in str(answer.json[0]["steps"])
    assert not any(left_over(homing))


async def run(pipeline: Pipeline, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workers.cli.main", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | pipeline.processes.env,
        # A test run in the background of a shell hands an ignored SIGINT down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


async def test_on_a_live_installation_everything_is_replayed_and_the_smoke_test_is_good(tmp_path: Path) -> None:
    async with running_pipeline(tmp_path, workers=1) as pipeline:
        smoke = await run(pipeline, "smoke", "--json")
        out, err = await smoke.communicate()
        assert smoke.returncode == 0, (out, err)
        assert all(step["ok"] for step in json.loads(out)[0]["steps"])

        async with Receiver(status(404)) as broken:
            endpoint = await pipeline.endpoint(broken.url)
            await pipeline.publish(80)
            await pipeline.all_in("dead_lettered", 80)
        drill = await run(pipeline, "dead-letters", "drill", "--count", "30", "--json")
        out, err = await drill.communicate()
        assert drill.returncode == 0, (out, err)

        async with Receiver(ok) as mended:
            await pipeline.rows("SELECT 1")
            async with pipeline.engine.begin() as connection:
                await connection.exec_driver_sql(
                    f"UPDATE endpoints SET url = '{mended.url}', version = version + 1 WHERE id = '{endpoint['id']}'"
                )
            replay = (
                "dead-letters",
                "replay",
                "--type",
                "test.*",
                "--execute",
                "--reason",
                "mended",
                "--yes",
                "--json",
            )
            slow = await run(pipeline, *replay, "--rate", "1", "--max", "60")
            assert slow.stderr is not None
            while b'"state": "r' not in (line := await slow.stderr.readline()):
                assert line
            slow.send_signal(signal.SIGINT)
            _, err = await slow.communicate()
            assert slow.returncode == 130
            assert b"homing replays cancel" in err
            (row,) = await pipeline.rows("SELECT id FROM replays WHERE state IN ('requested', 'running')")
            cancel = await run(pipeline, "replays", "cancel", str(row.id), "--reason", "too slow", "--json")
            out, _ = await cancel.communicate()
            assert json.loads(out)["state"] == "cancelled"

            rest = await run(pipeline, *replay)
            out, err = await rest.communicate()
            assert rest.returncode == 0, err
            assert json.loads(out)["progress"]["resolved"] == json.loads(out)["items"]
            await pipeline.all_in("delivered", 80)
            assert len({r.headers["webhook-id"] for r in mended.requests}) == len(mended.requests) == 80
