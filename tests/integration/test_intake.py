"""From the outbox to events and deliveries: who gets what, what is set aside, and what concurrency must not change."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.attempts import park_if_endpoint_not_active, start_if_published
from app.intake import Intake
from tests.factories import make_endpoint, make_outbox_event, make_tenant, one, rows, take, take_all


async def receivers(engine: AsyncEngine) -> list[UUID]:
    return [r.endpoint_id for r in await rows(engine, "SELECT endpoint_id FROM deliveries ORDER BY endpoint_id")]


# --- who gets what ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event_type", "patterns", "subscribed"),
    [
        ("invoice.paid", ["*"], True),
        ("invoice.paid", ["invoice.paid"], True),
        ("invoice.paid", ["invoice.*"], True),
        ("invoice.paid.late", ["invoice.*"], True),
        ("invoice.paid", ["other", "invoice.*", "*"], True),
        ("invoice.paid", ["invoice.void"], False),
        ("invoice.paid", ["invoice"], False),
        ("invoice", ["invoice.*"], False),
        ("invoices.paid", ["invoice.*"], False),
        ("Invoice.paid", ["invoice.*"], False),
        ("invoice_paid", ["invoice.paid"], False),
    ],
)
async def test_endpoint_gets_the_types_it_subscribes_to_once(
    engine: AsyncEngine, event_type: str, patterns: list[str], subscribed: bool
) -> None:
    await make_endpoint(engine, event_types=patterns)
    await make_outbox_event(engine, event_type=event_type)
    intake = await take(engine)
    assert (intake.taken, intake.deliveries, len(intake.claimed)) == (1, subscribed, subscribed)


async def test_event_goes_to_every_matching_endpoint_of_its_tenant_only(engine: AsyncEngine) -> None:
    await make_tenant(engine, "stranger")
    matching = [await make_endpoint(engine) for _ in range(3)]
    await make_endpoint(engine, tenant_id="stranger")
    await make_outbox_event(engine)
    assert len((await take(engine)).claimed) == 3
    assert await receivers(engine) == sorted(matching)


@pytest.mark.parametrize("status", ["disabled", "archived"])
async def test_disabled_and_archived_endpoints_get_nothing(engine: AsyncEngine, status: str) -> None:
    await make_endpoint(engine, status=status)
    await make_outbox_event(engine)
    assert await take(engine) == Intake(taken=1)


async def test_delivery_for_a_paused_endpoint_waits(engine: AsyncEngine) -> None:
    await make_endpoint(engine, status="paused")
    await make_outbox_event(engine)
    assert await take(engine) == Intake(taken=1, deliveries=1)
    delivery = await one(engine, "UPDATE deliveries SET generation = 1, lease_owner = 'o' RETURNING id")
    async with engine.begin() as connection:
        assert await start_if_published(connection, [(delivery.id, 1)], worker="w", lease_s=20) == []
        assert await park_if_endpoint_not_active(connection, [(delivery.id, 1)]) == 1
    assert await one(engine, "SELECT state, attempts, due_at = 'infinity' FROM deliveries") == ("pending", 0, True)


async def test_event_nobody_subscribes_to_is_kept(engine: AsyncEngine) -> None:
    event_id = await make_outbox_event(engine)
    await take(engine)
    assert (await one(engine, "SELECT id FROM events")).id == event_id
    assert await rows(engine, "SELECT FROM outbox_events") == []


async def test_first_deliveries_up_to_capacity_are_claimed_and_the_rest_is_due(engine: AsyncEngine) -> None:
    await make_endpoint(engine)
    for _ in range(7):
        await make_outbox_event(engine)
    intake = await take(engine, capacity=3, owner="me")
    assert (intake.deliveries, len(intake.claimed)) == (7, 3)
    assert {c.generation for c in intake.claimed} == {1}
    found = await rows(
        engine, "SELECT due_at > now() AS leased, lease_owner, generation FROM deliveries ORDER BY 1 DESC"
    )
    assert [tuple(r) for r in found] == [(True, "me", 1)] * 3 + [(False, None, 0)] * 4


async def test_oldest_rows_are_taken_first(engine: AsyncEngine) -> None:
    ids = [await make_outbox_event(engine) for _ in range(5)]
    await take(engine, limit=2)
    left = {r.id for r in await rows(engine, "SELECT id FROM outbox_events")}
    assert len(left) == 3
    assert ids[-1] in left


# --- commit, rollback, late commit -----------------------------------------------------------------------------------


async def test_rolled_back_event_never_existed(engine: AsyncEngine) -> None:
    await make_endpoint(engine)
    async with engine.connect() as producer:
        await producer.execute(text("INSERT INTO outbox_events (event_type, payload) VALUES ('a.b', '{}')"))
        await producer.rollback()
    assert await take(engine) == Intake()


async def test_transaction_that_commits_after_a_thousand_newer_ones_is_not_skipped(engine: AsyncEngine) -> None:
    await make_endpoint(engine)
    insert = "INSERT INTO outbox_events (event_type, payload) SELECT 'a.b', to_jsonb(n) FROM generate_series(1, {}) n"
    async with engine.connect() as late:
        await late.execute(text(insert.format(1)))
        await rows(engine, insert.format(1000))
        assert (await take_all(engine, 400, "p")).taken == 1000
        assert await take(engine) == Intake()
        await late.commit()
    assert (await take(engine)).deliveries == 1


async def test_takers_at_once_never_share_a_row_and_never_wait(engine: AsyncEngine) -> None:
    for _ in range(6):
        await make_outbox_event(engine)
    async with engine.connect() as slow:
        await slow.execute(text("SELECT FROM outbox_events ORDER BY id LIMIT 4 FOR UPDATE SKIP LOCKED"))
        async with asyncio.timeout(5):
            assert (await take(engine)).taken == 2
    assert (await take(engine)).taken == 4


# --- rows that cannot be taken ---------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown tenant": ({"tenant_id": "nobody"}, "tenant_id 'nobody' is unknown"),
    "empty type": ({"event_type": ""}, "event_type"),
    "type with space": ({"event_type": "a b"}, "event_type"),
    "type with star": ({"event_type": "a.*"}, "event_type"),
    "type with line end": ({"event_type": "a.b\n"}, "event_type"),
    "type in another script": ({"event_type": "rechnung.fällig"}, "event_type"),
    "long type": ({"event_type": "a" * 257}, "event_type"),
    "payload too large": ({"payload": json.dumps("x" * (1 << 20))}, "HOMING_PAYLOAD_MAX_BYTES"),
    "long request id": ({"request_id": "r" * 257}, "request_id"),
    "empty request id": ({"request_id": ""}, "request_id"),
    "long key": ({"idempotency_key": "ü" * 257}, "idempotency_key"),
    "long run id": ({"run_id": "r" * 257}, "run_id"),
    "long ordering key": ({"ordering_key": "r" * 257}, "ordering_key"),
    "headers: list": ({"headers": "[]"}, "headers: "),
    "headers: text": ({"headers": '"a: b"'}, "headers: "),
    "headers: number": ({"headers": '{"x-a": 1}'}, "headers: "),
    "headers: null value": ({"headers": '{"x-a": null}'}, "headers: "),
    "headers: nested": ({"headers": '{"x-a": {"b": "c"}}'}, "headers: "),
    "headers: CR LF": ({"headers": json.dumps({"x-a": "1\r\nx-b: 2"})}, "headers: "),
    "headers: LF in name": ({"headers": json.dumps({"x-a\n": "1"})}, "headers: "),
    "headers: framing": ({"headers": '{"Transfer-Encoding": "chunked"}'}, "headers: "),
    "headers: ours": ({"headers": '{"webhook-id": "forged"}'}, "headers: "),
    "headers: twice": ({"headers": '{"x-a": "1", "X-A": "2"}'}, "headers: "),
    "headers: too many": ({"headers": json.dumps({f"x-{n}": "1" for n in range(21)})}, "headers: "),
    "headers: too long": ({"headers": json.dumps({"x-a": "v" * 4096})}, "headers: "),
}
UNREADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "headers: 3,000 levels": ({"headers": "[" * 3000 + "]" * 3000}, "headers"),
    "headers: number of 5,000 digits": ({"headers": '{"x-a": ' + "9" * 5000 + "}"}, "headers"),
    "payload that grows to over 1 GB as text": ({"payload": f"[{','.join(['1e131071'] * 9000)}]"}, ""),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_row_is_set_aside_whole_with_its_reason(engine: AsyncEngine, name: str) -> None:
    columns, reason = BAD[name]
    bad = await make_outbox_event(engine, **columns)
    before = await one(engine, "SELECT * FROM outbox_events")
    await take(engine)
    rejected = await one(engine, "SELECT * FROM outbox_rejected")
    assert rejected.id == bad
    assert reason in rejected.reason
    assert rejected[: len(before)] == before
    assert await rows(engine, "SELECT FROM outbox_events") == await rows(engine, "SELECT FROM events") == []


@pytest.mark.parametrize("name", UNREADABLE)
async def test_row_that_cannot_even_be_read_is_set_aside(engine: AsyncEngine, name: str) -> None:
    columns, reason = UNREADABLE[name]
    bad = await make_outbox_event(engine, **columns)
    behind = await make_outbox_event(engine)
    await take(engine)
    rejected = await one(engine, "SELECT id, reason FROM outbox_rejected")
    assert rejected.id == bad
    assert reason in rejected.reason
    assert (await one(engine, "SELECT id FROM events")).id == behind


@pytest.mark.parametrize("time", ["infinity", "-infinity", "4000-01-01 BC", "20000-01-01"])
async def test_time_that_python_cannot_read_does_not_keep_a_delivery_from_starting(
    engine: AsyncEngine, time: str
) -> None:
    """A producer may write `created_at`; set aside or taken, such a row must not stop its chunk for ever."""
    await make_endpoint(engine)
    await rows(engine, f"INSERT INTO outbox_events (event_type, payload, created_at) VALUES ('a.b', '{{}}', '{time}')")
    await make_outbox_event(engine)
    tickets = [(c.delivery_id, c.generation) for c in (await take(engine)).claimed]
    async with engine.begin() as connection:
        started = await start_if_published(connection, tickets, worker="w", lease_s=20)
    assert len(started) == len(tickets) >= 1


async def test_every_kind_of_bad_row_at_once_does_not_stop_the_rows_behind(engine: AsyncEngine) -> None:
    await make_endpoint(engine)
    used = await make_outbox_event(engine)
    await take(engine)
    await make_outbox_event(engine, id=used)
    for columns, _ in BAD.values():
        await make_outbox_event(engine, **columns)
    good = await make_outbox_event(engine)
    intake = await take(engine)
    assert (intake.taken, intake.rejected, intake.deliveries) == (1, len(BAD) + 1, 1)
    assert await rows(engine, "SELECT FROM events WHERE id = :id", id=good)
    reason = await one(engine, "SELECT reason FROM outbox_rejected WHERE id = :id", id=used)
    assert reason.reason.startswith("the database refuses it: ")


# --- the bytes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        '{"b":1,  "a":[1.0, 1.10, 0.1e1, -0]}',
        "[123456789012345678901234567890, 1e400, 0.1000000000000000055511151231257827021181583404541015625]",
        "[" * 5000 + "]" * 5000,
        json.dumps({"\u202e\U0001f600é\ufeff": '\u2028\x7f\\"/\t'}, ensure_ascii=False),
        r'"é😀 \u0001"',
        "null",
        '""',
    ],
    ids=["spaces", "numbers", "deep", "unicode", "escapes", "null", "empty"],
)
async def test_body_is_the_payload_exactly_as_postgres_writes_it(engine: AsyncEngine, payload: str) -> None:
    await make_outbox_event(engine, payload=payload)
    written = (await one(engine, "SELECT payload::text FROM outbox_events")).payload
    await take(engine)
    assert (await one(engine, "SELECT body FROM events")).body == written


async def test_event_keeps_every_column_of_its_row(engine: AsyncEngine) -> None:
    columns = {
        "id": uuid4(),
        "request_id": "req-1",
        "idempotency_key": "k",
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "run_id": "run",
        "ordering_key": "customer-1",
        "headers": '{"x-a": "b"}',
    }
    await make_outbox_event(engine, **columns)
    before = (await one(engine, "SELECT to_jsonb(o) - 'payload' FROM outbox_events o"))[0]
    await take(engine)
    after = (await one(engine, "SELECT to_jsonb(e) - 'body' - 'taken_at' - 'duplicate_of' FROM events e"))[0]
    assert after == before


async def test_event_without_a_request_id_gets_one_made_from_its_id(engine: AsyncEngine) -> None:
    event_id = await make_outbox_event(engine, request_id=None)
    await take(engine)
    assert (await one(engine, "SELECT request_id FROM events")).request_id == f"req_{event_id}"
