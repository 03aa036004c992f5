"""What `homing` prints and exits with: schema, status, doctor, tenants, endpoints, deliveries, dead letters, replay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest

from app import __version__
from tests.conftest import Servers
from tests.integration.command_line import CommandLine, command_line

CLOSED = "postgresql://homing:hidden-password@127.0.0.1:1/homing"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(scope="module")
def homing(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with command_line(servers, tmp_path_factory.mktemp("cli")) as line:
        yield line


def test_version_is_told() -> None:
    version = subprocess.run([sys.executable, "-m", "workers.cli.main", "--version"], capture_output=True, check=True)
    assert version.stdout == f"homing {__version__}\n".encode()


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "workers.cli.main", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ("up", "migrate", "status", "doctor", "poller", "worker", "replay", "endpoints", "demo", "bench"):
        assert f" {name} " in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"sqlalchemy", "alembic", "dramatiq", "aiohttp", "redis", "psycopg", "pydantic"} & imported


@pytest.mark.parametrize("name", ["demo", "bench"])
def test_commands_of_other_packages_show_their_own_options(homing: CommandLine, name: str) -> None:
    answer = homing(name, "--help")
    assert answer.code == 0
    assert "--json" in answer.out


def test_a_command_run_as_a_process_answers_with_json_and_exit_code(homing: CommandLine) -> None:
    command = [sys.executable, "-m", "workers.cli.main", "deliveries", "show", str(uuid4()), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | homing.environment, check=False)
    assert done.returncode == 3
    assert json.loads(done.stderr)["error"]["kind"] == "NotFound"
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("endpoints",),
        ("deliveries", "show", "not-a-uuid"),
        ("deliveries", "list", "--limit", "0"),
        ("deliveries", "list", "--state", "lost"),
        ("dead-letters", "list", "--since", "yesterday"),
        ("dead-letters", "list", "--status", "gone"),
        ("endpoints", "create", "--url", "ftp://example.com"),
        ("endpoints", "create", "--url", "https://example.com", "--schedule", "soon"),
        ("endpoints", "create", "--url", "https://example.com", "--max-attempts", "0"),
        ("events", "publish"),
        ("events", "publish", "--type", "a"),
        ("events", "resubmit"),
        ("replay", "--request-id", "r"),
        ("migrate", "--to", "nowhere"),
        ("tenants", "create", "no spaces"),
    ],
)
def test_bad_usage_exits_with_2_and_says_why(homing: CommandLine, arguments: tuple[str, ...]) -> None:
    answer = homing(*arguments, "--json")
    assert answer.code == 2
    assert answer.error["exit_code"] == 2
    assert answer.error["message"]
    assert answer.out == "" or arguments == ("endpoints",)


@pytest.mark.parametrize(
    "arguments",
    [
        ("endpoints", "show", str(uuid4())),
        ("endpoints", "pause", str(uuid4())),
        ("endpoints", "create", "--url", "https://example.com", "--tenant", "nobody"),
        ("deliveries", "show", str(uuid4())),
        ("dead-letters", "show", str(uuid4())),
        ("events", "show", "no-such-request"),
        ("events", "resubmit", str(uuid4())),
        ("replay", "--request-id", "no-such-request", "--reason", "test"),
    ],
)
def test_unknown_things_exit_with_3(homing: CommandLine, arguments: tuple[str, ...]) -> None:
    answer = homing(*arguments)
    assert answer.code == 3
    assert answer.err.startswith("homing: ")
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("status",), ("deliveries", "list"), ("migrate",)])
def test_postgres_away_exits_with_7_without_the_password(homing: CommandLine, arguments: tuple[str, ...]) -> None:
    answer = homing(*arguments, HOMING_DATABASE_URL=CLOSED)
    assert answer.code == 7
    assert "Connection refused" in answer.err
    assert "hidden-password" not in answer.err


@pytest.mark.parametrize("url", ["mysql://u:hidden@h/x", "hidden", "postgresql://u:hidden@h:port/x"])
@pytest.mark.parametrize("command", ["status", "poller", "up"])
def test_a_bad_url_is_refused_without_repeating_it(homing: CommandLine, url: str, command: str) -> None:
    answer = homing(command, HOMING_DATABASE_URL=url)
    assert answer.code == 2
    assert "HOMING_DATABASE_URL cannot be read" in answer.err
    assert "hidden" not in answer.err


def test_wrong_password_exits_with_4(homing: CommandLine) -> None:
    user = homing.database_url.partition("://")[2].partition(":")[0]
    place = homing.database_url.rpartition("@")[2]
    answer = homing("deliveries", "list", HOMING_DATABASE_URL=f"postgresql://{user}:wrong-one@{place}")
    assert answer.code == 4
    assert "wrong-one" not in answer.err


def test_missing_schema_names_the_command_that_makes_it(homing: CommandLine, servers: Servers) -> None:
    empty = servers.url_of("postgres")
    answer = homing("deliveries", "list", "--json", HOMING_DATABASE_URL=empty)
    assert answer.code == 1
    assert "homing migrate" in answer.error["message"]
    assert homing("poller", HOMING_DATABASE_URL=empty).code == 1
    status = homing("status", "--json", HOMING_DATABASE_URL=empty)
    assert status.code == 0
    assert status.json["hints"] == ["the database has no schema yet: homing migrate"]
    assert status.json["schema"]["at"] is None


def test_migrate_tells_where_it_came_from_and_went(homing: CommandLine) -> None:
    head = homing.ok("status")["schema"]["head"]
    assert homing.ok("migrate") == {"before": head, "after": head}


def test_status_counts_and_hints(homing: CommandLine) -> None:
    endpoint = homing.make_endpoint()
    homing.make_delivery("dead_lettered", request_id="status-1", endpoint=endpoint)
    found = homing.ok("status")
    assert found["postgres"]["state"] == found["redis"]["state"] == "up"
    assert found["deliveries"]["dead_lettered"] >= 1
    assert found["endpoints"]["active"] >= 1
    assert any("homing dead-letters list" in hint for hint in found["hints"])


def test_redis_away_is_shown_and_not_an_error(homing: CommandLine) -> None:
    answer = homing("status", "--json", HOMING_REDIS_URL="redis://127.0.0.1:1/0")
    assert answer.code == 0
    assert answer.json["redis"]["state"] == "away"
    assert any("nothing is lost" in hint for hint in answer.json["hints"])


def test_doctor_finds_everything_in_order_and_leaves_nothing_behind(homing: CommandLine) -> None:
    tables = ("outbox_events", "event_keys", "replays", "replay_items", "dead_letters")
    before = [homing.sql(f"SELECT count(*) FROM {table}") for table in tables]
    found = homing.ok("doctor")
    assert found["failed"] == 0
    assert {check["name"] for check in found["checks"] if "refuses a second write" in check["found"]} == {
        "one outbox row per event id",
        "one set of deliveries per idempotency key",
        "one replay per idempotency key",
        "one open replay per delivery",
        "one dead letter per delivery that ran out",
    }
    assert [homing.sql(f"SELECT count(*) FROM {table}") for table in tables] == before


def test_doctor_fails_when_a_guard_is_gone(homing: CommandLine) -> None:
    definition = homing.sql("SELECT pg_get_indexdef('replay_items_open'::regclass) AS d")[0]["d"]
    homing.sql("DROP INDEX replay_items_open")
    try:
        answer = homing("doctor", "--json")
    finally:
        homing.sql(definition)
    assert answer.code == 1
    failed = [check for check in answer.json["checks"] if check["state"] == "fail"]
    assert [check["name"] for check in failed] == ["one open replay per delivery"]
    assert "replay_items_open" in failed[0]["do"]


def test_doctor_reports_servers_that_are_away_and_a_key_that_does_not_open(homing: CommandLine) -> None:
    homing.make_endpoint()
    other_key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    answer = homing("doctor", "--json", HOMING_REDIS_URL="redis://127.0.0.1:1/0", HOMING_SECRET_KEYS=other_key)
    assert answer.code == 1
    failed = {check["name"] for check in answer.json["checks"] if check["state"] == "fail"}
    assert failed == {"Redis", "endpoint secrets"}
    away = homing("doctor", "--json", HOMING_DATABASE_URL=CLOSED)
    assert away.code == 1
    assert {check["name"] for check in away.json["checks"] if check["state"] == "fail"} == {"Postgres"}


def test_tenants_are_made_once_and_listed(homing: CommandLine) -> None:
    made = homing.ok("tenants", "create", "acme", "--name", "Acme")
    assert (made["id"], made["name"]) == ("acme", "Acme")
    assert homing("tenants", "create", "acme").code == 5
    assert {"default", "acme"} <= {tenant["id"] for tenant in homing.ok("tenants", "list")}


def test_a_generated_secret_is_printed_once_and_never_again(homing: CommandLine) -> None:
    made = homing.ok("endpoints", "create", "--url", "https://receiver.example/a", "--schedule", "60,120")
    secret = made["secret"]
    assert secret.startswith("whsec_")
    assert (made["schedule_s"], made["max_attempts"]) == ([60, 120], 3)
    for arguments in (("endpoints", "list"), ("endpoints", "show", made["id"])):
        for answer in (homing(*arguments), homing(*arguments, "--json")):
            assert answer.code == 0
            assert secret not in answer.out + answer.err
            assert "whsec_" not in answer.out
    assert made["id"] in homing("endpoints", "list").out


def test_a_secret_from_stdin_is_used_and_not_repeated(homing: CommandLine) -> None:
    arguments = ("endpoints", "create", "--url", "https://receiver.example/b", "--secret-stdin")
    answer = homing(*arguments, "--json", stdin=f"{SECRET}\n")
    assert answer.code == 0
    assert "secret" not in answer.json
    assert SECRET not in answer.out + answer.err
    assert homing(*arguments, stdin="").code == 2
    short = homing(*arguments, stdin="whsec_c2hvcnQ=\n")
    assert short.code == 2
    assert "c2hvcnQ" not in short.err


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.1.2.3"])
def test_a_host_that_cannot_be_called_is_warned_about(homing: CommandLine, host: str) -> None:
    arguments = ("endpoints", "create", "--url", f"http://{host}:8000/hook")
    assert "HOMING_ALLOW_NETWORKS" in homing(*arguments).err
    allowed = homing(*arguments, HOMING_ALLOW_NETWORKS="127.0.0.0/8,::1/128,10.0.0.0/8")
    assert allowed.code == 0
    assert "HOMING_ALLOW_NETWORKS" not in allowed.err


def test_pausing_and_resuming_are_conflicts_the_second_time(homing: CommandLine) -> None:
    endpoint = homing.make_endpoint()
    delivery = homing.make_delivery("pending", request_id="pause-1", endpoint=endpoint)
    homing.sql("UPDATE deliveries SET due_at = 'infinity' WHERE id = %(id)s", id=delivery)
    assert homing.ok("endpoints", "pause", endpoint, "--reason", "repairs")["status"] == "paused"
    assert homing("endpoints", "pause", endpoint).code == 5
    assert homing.ok("endpoints", "show", endpoint)["status_reason"] == "repairs"
    assert homing.ok("deliveries", "show", delivery)["next_attempt_at"] is None
    assert homing.ok("endpoints", "resume", endpoint)["deliveries_freed"] == 1
    assert homing("endpoints", "resume", endpoint).code == 5


def test_deliveries_are_found_by_every_filter_and_shown_whole(homing: CommandLine) -> None:
    endpoint = homing.make_endpoint()
    delivery = homing.make_delivery("failed", request_id="find-1", endpoint=endpoint, event_type="order.made")
    homing.make_delivery("delivered", request_id="find-1", endpoint=endpoint)
    filters = ("--state", "failed", "--endpoint", endpoint, "--request-id", "find-1", "--event-type", "order.made")
    assert [row["delivery_id"] for row in homing.ok("deliveries", "list", *filters)] == [delivery]
    shown = homing.ok("deliveries", "show", delivery)
    assert (shown["state"], shown["timeline"]) == ("failed", [])
    assert shown["created_at"].endswith("Z")
    assert delivery in homing("deliveries", "list", *filters).out
    assert homing("deliveries", "show", delivery, "--tenant", "acme").code == 3


def test_dead_letters_are_found_by_every_filter_and_shown_with_snapshots(homing: CommandLine) -> None:
    endpoint = homing.make_endpoint()
    homing.make_delivery("dead_lettered", request_id="dead-1", endpoint=endpoint)
    filters = ("--status", "open", "--endpoint", endpoint, "--request-id", "dead-1", "--event-type", "invoice.paid")
    (letter,) = homing.ok("dead-letters", "list", *filters, "--class", "http_status", "--since", "2h")
    assert homing.ok("dead-letters", "list", *filters, "--since", "2999-01-01T00:00:00+02:00") == []
    shown = homing.ok("dead-letters", "show", letter["id"])
    assert (shown["payload"], shown["response"], shown["last_http_status"]) == ('{"a": 1}', "no", 400)
    assert letter["id"] in homing("dead-letters", "list", *filters).out


def test_replay_reports_true_states_and_is_idempotent(homing: CommandLine) -> None:
    endpoint = homing.make_endpoint()
    dead = homing.make_delivery("dead_lettered", request_id="replay-1", endpoint=endpoint)
    homing.make_delivery("delivered", request_id="replay-1", endpoint=endpoint)
    arguments = ("replay", "--request-id", "replay-1", "--reason", "receiver was mended")
    dry = homing(*arguments, "--dry-run", "--json")
    assert "nothing was done" in dry.err
    assert (dry.json["replay_id"], dry.json["skipped"]) == (None, {"delivered": 1})
    assert homing.sql("SELECT FROM replays WHERE request_id = 'replay-1'") == []
    done = homing.ok(*arguments, "--idempotency-key", "k1")
    assert [(d["delivery_id"], d["previous_state"]) for d in done["deliveries"]] == [(dead, "dead_lettered")]
    again = homing.ok(*arguments, "--idempotency-key", "k1")
    assert (again["replay_id"], again["repeated"]) == (done["replay_id"], True)
    other = homing("replay", "--request-id", "replay-1", "--reason", "other", "--idempotency-key", "k1", "--json")
    assert (other.code, other.error["kind"]) == (5, "IdempotencyConflict")
    assert homing(*arguments).code == 5
    (row,) = homing.sql("SELECT actor FROM replays WHERE request_id = 'replay-1'")
    assert row["actor"].startswith("cli:")


def test_replay_of_something_delivered_is_a_conflict(homing: CommandLine) -> None:
    homing.make_delivery("delivered", request_id="replay-2", endpoint=homing.make_endpoint())
    answer = homing("replay", "--request-id", "replay-2", "--reason", "test")
    assert answer.code == 5
    assert "1 delivered" in answer.err
