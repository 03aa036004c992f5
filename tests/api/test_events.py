"""Events over HTTP: committed to the outbox exactly as they were written, and found again by their request id."""

from __future__ import annotations

import json

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.api.conftest import problem_of
from tests.factories import make_delivery, make_endpoint, make_outbox_event, one, rows, take

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_accepted_event_is_a_row_in_the_outbox_that_the_poller_takes(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await make_endpoint(engine)
    new = {
        "event_type": "invoice.paid",
        "payload": {"invoice": 42},
        "request_id": "order-1",
        "idempotency_key": "k",
        "traceparent": TRACE,
        "run_id": "run",
        "ordering_key": "o",
        "headers": {"X-Source": "billing"},
    }
    answer = await client.post("/v1/events", json=new)
    assert (answer.status_code, answer.json()["request_id"]) == (202, "order-1")
    row = await one(engine, "SELECT * FROM outbox_events")
    assert str(row.id) == answer.json()["id"]
    assert (row.tenant_id, row.payload, row.traceparent, row.headers) == (
        "default",
        {"invoice": 42},
        TRACE,
        {"x-source": "billing"},
    )
    taken = await take(engine)
    assert (taken.taken, taken.deliveries, taken.rejected) == (1, 1, 0)


@pytest.mark.parametrize(
    "payload", ["1.10", "0.1000000000000000055511151231257827", "12345678901234567890123456789", "null", '"é😀"', "[]"]
)
async def test_payload_keeps_every_digit(client: httpx.AsyncClient, engine: AsyncEngine, payload: str) -> None:
    body = f'{{"event_type": "a.b", "payload": {payload}}}'
    answer = await client.post("/v1/events", content=body.encode(), headers={"content-type": "application/json"})
    assert answer.status_code == 202, answer.text
    assert (await one(engine, "SELECT payload::text AS text FROM outbox_events")).text == payload


async def test_request_id_and_trace_come_from_the_headers_when_the_body_has_none(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    headers = {"x-request-id": "from-header", "traceparent": TRACE}
    answer = await client.post("/v1/events", json={"event_type": "a.b", "payload": 1}, headers=headers)
    assert answer.headers["x-request-id"] == "from-header"
    row = await one(engine, "SELECT request_id, traceparent FROM outbox_events")
    assert tuple(row) == ("from-header", TRACE)


@pytest.mark.parametrize(
    "body",
    [
        b'{"event_type": "a.b"}',
        b'{"event_type": "a b", "payload": 1}',
        b'{"event_type": "a.b", "payload": 1, "payload": 2}',
        b'{"event_type": "a.b", "payload": {"x": NaN}}',
        b'{"event_type": "a.b", "payload": -Infinity}',
        b'{"event_type": "a.b", "payload": 1e999}',
        b'{"event_type": "a.b", "payload": ' + b"9" * 5000 + b"}",
        b'{"event_type": "a.b", "payload": "\\u0000"}',
        b'{"event_type": "a.b", "payload": {"\\ud800": 1}}',
        b'{"event_type": "a.b", "payload": "\xff"}',
        b'{"event_type": "a.b", "payload": ' + b"[" * 80 + b"]" * 80 + b"}",
        b"[" * 500_000,
        b'{"event_type": "a.b", "payload": 1, "request_id": ""}',
        b'{"event_type": "a.b", "payload": 1, "request_id": "' + b"r" * 257 + b'"}',
        b'{"event_type": "a.b", "payload": 1, "headers": {"Host": "x"}}',
        b'{"event_type": "a.b", "payload": 1, "headers": {"a": "b\\r\\nc: d"}}',
        b'{"event_type": "a.b", "payload": 1, "headers": {"a": 1}}',
        b'{"event_type": "a.b", "payload": 1, "tenant_id": "other"}',
        b'{"event_type": "a.b", "payload": 1}}',
        b"null",
        b"",
        b"\xef\xbb\xbf{}",
    ],
    ids=range(22),
)
async def test_event_that_is_not_acceptable_is_refused_and_not_written(
    client: httpx.AsyncClient, engine: AsyncEngine, body: bytes
) -> None:
    answer = await client.post("/v1/events", content=body, headers={"content-type": "application/json"})
    problem = problem_of(answer, 400, "INT-400-INVALID-PAYLOAD")
    assert problem["errors"] or problem["detail"]
    assert await rows(engine, "SELECT FROM outbox_events") == []


async def test_payload_that_grows_beyond_the_limit_as_it_is_sent_is_refused(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """Compact, the body is below the limit; as it is stored and sent, there is a space after every comma."""
    body = {"event_type": "a.b", "payload": [1] * 450_000}
    answer = await client.post(
        "/v1/events", content=json.dumps(body, separators=(",", ":")), headers={"content-type": "application/json"}
    )
    problem_of(answer, 400, "INT-400-INVALID-PAYLOAD")
    assert await rows(engine, "SELECT FROM outbox_events") == []


async def test_body_of_more_than_a_mebibyte_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/events", json={"event_type": "a.b", "payload": "x" * (1 << 20)})
    problem_of(answer, 413, "INT-413-TOO-LARGE")


async def test_endless_body_without_a_length_is_cut_off(client: httpx.AsyncClient) -> None:
    async def endless() -> object:
        while True:
            yield b"[" * 65536

    answer = await client.post("/v1/events", content=endless(), headers={"content-type": "application/json"})
    problem_of(answer, 413, "INT-413-TOO-LARGE")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_other_media_types_are_refused(client: httpx.AsyncClient, media_type: str) -> None:
    answer = await client.post("/v1/events", content=b"{}", headers={"content-type": media_type})
    problem_of(answer, 415, "INT-415-UNSUPPORTED-MEDIA-TYPE")


async def test_request_id_shows_events_wherever_they_are_with_deliveries_and_attempts(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await make_outbox_event(engine, request_id="r/1 ?")
    delivery = await make_delivery(engine, "retry_scheduled", request_id="r/1 ?")
    await rows(
        engine,
        """
        INSERT INTO delivery_attempts (delivery_id, generation, tenant_id, number, started_at, outcome, retryable)
        VALUES (:id, 1, 'default', 1, now(), 'transient', true)
        """,
        id=delivery.id,
    )
    found = (await client.get("/v1/events/r%2F1%20%3F")).json()["items"]
    assert sorted(event["place"] for event in found) == ["taken", "waiting"]
    (taken,) = (event for event in found if event["place"] == "taken")
    assert taken["payload"] == '{"amount": 1}'
    assert taken["deliveries"][0]["id"] == str(delivery.id)
    assert [attempt["outcome"] for attempt in taken["deliveries"][0]["timeline"]] == ["transient"]


async def test_event_that_was_set_aside_says_why(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await make_outbox_event(engine, request_id="bad", event_type="no spaces please")
    await take(engine)
    (event,) = (await client.get("/v1/events/bad")).json()["items"]
    assert event["place"] == "set_aside"
    assert "event_type" in event["reason"]


async def test_unknown_request_id_is_not_found(client: httpx.AsyncClient) -> None:
    problem_of(await client.get("/v1/events/nobody"), 404, "INT-404-NOT-FOUND")
