"""`homing events`: published all or none, found, set aside and put back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Servers
from tests.integration.command_line import CommandLine, command_line

GOOD = '{"event_type": "invoice.paid", "payload": {"amount": 10.10}, "request_id": "r1"}'


@pytest.fixture(scope="module")
def homing(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with command_line(servers, tmp_path_factory.mktemp("cli_events")) as line:
        yield line


@pytest.fixture(autouse=True)
def _empty_outbox(homing: CommandLine) -> None:
    homing.sql("DELETE FROM outbox_events")
    homing.sql("DELETE FROM outbox_rejected")


def outbox(homing: CommandLine) -> list[dict[str, object]]:
    return homing.sql("SELECT id, event_type, payload::text AS payload, request_id FROM outbox_events ORDER BY id")


def test_one_event_is_published_from_options(homing: CommandLine) -> None:
    done = homing.ok("events", "publish", "--type", "a.b", "--data", '{"n": 1.50}', "--request-id", "one")
    (row,) = outbox(homing)
    assert (row["payload"], row["request_id"]) == ('{"n": 1.50}', "one")
    assert done == {"published": 1, "events": [{"id": str(row["id"]), "request_id": "one", "event_type": "a.b"}]}


def test_json_lines_from_a_file_keep_order_fields_and_exact_numbers(homing: CommandLine, tmp_path: Path) -> None:
    full = {
        "event_type": "x",
        "payload": ["ü", None],
        "idempotency_key": "i",
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "run_id": "run",
        "ordering_key": "o",
        "headers": {"x-a": "1"},
    }
    file = tmp_path / "events.jsonl"
    file.write_text(f"\ufeff{GOOD}\n\n{json.dumps(full)}\r\n", encoding="utf-8")
    done = homing.ok("events", "publish", str(file))
    by_id = {str(row["id"]): row for row in homing.sql("SELECT *, payload::text AS body FROM outbox_events")}
    rows = [by_id.pop(event["id"]) for event in done["events"]]
    assert by_id == {}
    assert rows[0]["body"] == '{"amount": 10.10}'
    assert rows[1]["payload"] == ["ü", None]
    assert all(rows[1][name] == full[name] for name in ("idempotency_key", "traceparent", "run_id", "ordering_key"))
    assert rows[1]["headers"] == {"x-a": "1"}
    assert rows[1]["request_id"].startswith("req_")


def test_an_array_from_stdin_of_more_than_one_batch_is_published_whole(homing: CommandLine) -> None:
    events = [{"event_type": "n", "payload": n, "request_id": f"n{n}"} for n in range(2100)]
    done = homing.ok("events", "publish", "-", stdin=json.dumps(events, indent=1))
    assert done["published"] == 2100
    assert [event["request_id"] for event in done["events"]] == [f"n{n}" for n in range(2100)]
    written = {(str(row["id"]), row["request_id"], row["payload"]) for row in outbox(homing)}
    assert written == {(event["id"], f"n{n}", str(n)) for n, event in enumerate(done["events"])}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("not json", "not a JSON object"),
        ('{"event_type": "a" "payload": 1}', "not JSON at character"),
        ('{"event_type": "a", "payload": }', "not JSON at character"),
        ('{"event_type": "a", "payload": 1,}', "comma"),
        ('{"event_type": "a", "payload": 1} {}', "text after the object"),
        ('{"event_type": "a"}', "payload is missing"),
        ('{"payload": 1}', "event_type is missing"),
        ('{"event_type": "a*", "payload": 1}', "event_type must be"),
        ('{"event_type": "a", "payload": 1, "evnt": 2}', "unknown field 'evnt'"),
        ('{"event_type": "a", "payload": 1, "payload": 2}', "given twice"),
        ('{"event_type": "a", "payload": NaN}', "NaN is not JSON"),
        ('{"event_type": "a", "payload": 1e999}', "too large"),
        ('{"event_type": "a", "payload": "\\u0000"}', "cannot be stored"),
        ('{"event_type": "a", "payload": "\\ud800"}', "cannot be stored"),
        ('{"event_type": "a", "payload": 1, "request_id": 7}', "request_id must be text"),
        ('{"event_type": "a", "payload": 1, "headers": {"host": "x"}}', "'host'"),
        ('{"event_type": "a", "payload": ' + "[" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_published(homing: CommandLine, bad: str, why: str) -> None:
    answer = homing("events", "publish", "-", "--json", stdin=f"{GOOD}\n{bad}\n{GOOD}\n")
    assert answer.code == 2
    assert "line 2: " in answer.error["message"]
    assert why in answer.error["message"]
    assert "1 of 3 events refused" in answer.error["message"]
    assert outbox(homing) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[{"event_type": "a", "payload": 1}, 7]', "item 2: not a JSON object"),
        ('[{"event_type": "a", "payload": 1}', "after item 1: ',' or ']' is missing"),
        ('[{"event_type": "a", "payload": 1}] x', "text after the array"),
        ("[nope]", "item 1: not JSON"),
    ],
)
def test_a_bad_array_is_refused_whole(homing: CommandLine, text: str, why: str) -> None:
    answer = homing("events", "publish", "-", stdin=text)
    assert answer.code == 2
    assert why in answer.err
    assert outbox(homing) == []


def test_what_cannot_be_published_is_refused_before_anything_is_written(homing: CommandLine, tmp_path: Path) -> None:
    unknown = homing("events", "publish", "-", stdin=GOOD[:-1] + ', "tenant_id": "nobody"}')
    assert (unknown.code, "line 1: tenant 'nobody'" in unknown.err) == (3, True)
    assert homing("events", "publish", str(tmp_path / "missing")).code == 2
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "byte 1 is not UTF-8" in homing("events", "publish", str(tmp_path / "binary")).err
    large = homing("events", "publish", "--type", "a", "--data", f'"{"x" * 200}"', HOMING_PAYLOAD_MAX_BYTES="100")
    assert (large.code, "HOMING_PAYLOAD_MAX_BYTES=100" in large.err) == (2, True)
    assert outbox(homing) == []
    assert homing.ok("events", "publish", "-", stdin="\n")["published"] == 0


def test_events_are_shown_wherever_they_are(homing: CommandLine) -> None:
    endpoint = homing.make_endpoint()
    delivery = homing.make_delivery("delivered", request_id="where", endpoint=endpoint)
    (waiting,) = homing.ok("events", "publish", "--type", "a", "--data", "1", "--request-id", "where")["events"]
    set_aside(homing, request_id="where")
    found = {event["place"]: event for event in homing.ok("events", "show", "where")}
    assert set(found) == {"waiting", "set_aside", "taken"}
    assert [(d["delivery_id"], d["state"]) for d in found["taken"]["deliveries"]] == [(delivery, "delivered")]
    assert found["set_aside"]["reason"] == "tenant unknown"
    assert [event["id"] for event in homing.ok("events", "show", waiting["id"])] == [waiting["id"]]
    assert delivery in homing("events", "show", "where").out
    assert homing("events", "show", "where", "--tenant", "other").code == 3


def set_aside(homing: CommandLine, *, request_id: str) -> str:
    (row,) = homing.sql(
        """
        INSERT INTO outbox_rejected (id, tenant_id, event_type, payload, request_id, created_at, reason)
        VALUES (homing_uuid7(), 'default', 'late', '{"b": 2.0}', %(request_id)s, '2026-01-02', 'tenant unknown')
        RETURNING id
        """,
        request_id=request_id,
    )
    return str(row["id"])


def test_resubmitted_rows_go_back_under_their_own_ids(homing: CommandLine) -> None:
    first, second = set_aside(homing, request_id="s1"), set_aside(homing, request_id="s2")
    assert [row["id"] for row in homing.ok("events", "rejected")] in ([second, first], [first, second])
    assert any("rejected" in hint for hint in homing.ok("status")["hints"])
    assert homing.ok("events", "resubmit", first) == {"resubmitted": 1, "ids": [first]}
    assert [(str(row["id"]), row["payload"]) for row in outbox(homing)] == [(first, '{"b": 2.0}')]
    (kept,) = homing.sql("SELECT created_at::date::text AS day FROM outbox_events")
    assert kept["day"] == "2026-01-02"
    half = homing("events", "resubmit", first, second)
    assert half.code == 3
    assert [row["id"] for row in homing.ok("events", "rejected")] == [second]
    assert homing.ok("events", "resubmit", "--all") == {"resubmitted": 1, "ids": [second]}
    assert homing.ok("events", "rejected") == []


def test_a_row_cannot_steer_the_terminal(homing: CommandLine) -> None:
    homing.sql(
        """
        INSERT INTO outbox_rejected (id, tenant_id, event_type, payload, request_id, created_at, reason)
        VALUES (homing_uuid7(), 'default', E'\\x1b[2J', '1', '[red]r[/red]', now(), 'bad')
        """
    )
    out = homing("events", "rejected").out
    assert "\x1b" not in out
    assert "[red]r[/red]" in out
