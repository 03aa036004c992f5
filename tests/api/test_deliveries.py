"""Deliveries over HTTP: listed by every filter, page by page, looked at, and sent again."""

from __future__ import annotations

from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app import listings
from app.replays import carry_out_if_requested, claim_requested
from tests.api.conftest import problem_of
from tests.factories import make_delivery, make_endpoint, one, rows, state_of


async def pages(client: httpx.AsyncClient, path: str) -> list[list[str]]:
    found = []
    while path:
        answer = await client.get(path)
        assert answer.status_code == 200, answer.text
        found.append([item["id"] for item in answer.json()["items"]])
        path = answer.links.get("next", {}).get("url", "")
        assert bool(path) == (answer.json()["next"] is not None)
    return found


async def test_filters_find_what_matches_all_of_them(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    wanted = await make_delivery(engine, "dead_lettered", endpoint_id=endpoint_id, request_id="r1")
    for state in ("pending", "delivered", "failed", "retry_scheduled"):
        await make_delivery(engine, state)
    by = {
        "state": "dead_lettered",
        "endpoint_id": str(endpoint_id),
        "event_id": str(wanted.event_id),
        "request_id": "r1",
        "failure_class": "http_status",
        "http_status": "503",
        "event_type": "invoice.paid",
    }
    for name in ("state", "endpoint_id", "event_id", "request_id"):
        assert await pages(client, f"/v1/deliveries?{name}={by[name]}") == [[str(wanted.id)]]
    answer = await client.get("/v1/deliveries", params=by)
    assert [item["id"] for item in answer.json()["items"]] == [str(wanted.id)]
    assert await pages(client, "/v1/deliveries?event_type=other") == [[]]
    assert sum(len(page) for page in await pages(client, "/v1/deliveries?http_status=503&limit=1")) == 3


async def test_times_bound_a_listing(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    old = UUID(int=(0x018F00000000 << 80) | 0x7000 << 64 | 0x8000 << 48)  # of April 2024
    await make_delivery(engine)
    await rows(
        engine,
        """
        INSERT INTO deliveries (id, tenant_id, event_id, endpoint_id, created_at)
        SELECT CAST(:id AS uuid), tenant_id, event_id, endpoint_id, '2024-04-21' FROM deliveries
        """,
        id=old,
    )
    assert await pages(client, "/v1/deliveries?until=2025-01-01T00:00:00Z") == [[str(old)]]
    (page,) = await pages(client, "/v1/deliveries?since=2025-01-01T00:00:00%2B02:00")
    assert len(page) == 1
    assert str(old) not in page
    assert len((await pages(client, "/v1/deliveries?since=1900-01-01T00:00:00Z"))[0]) == 2


async def test_nothing_is_skipped_or_repeated_while_rows_are_added(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    endpoint_id = await make_endpoint(engine)
    before = {str((await make_delivery(engine, endpoint_id=endpoint_id)).id) for _ in range(7)}
    seen: list[str] = []
    path = "/v1/deliveries?limit=2"
    while path:
        answer = await client.get(path)
        seen += [item["id"] for item in answer.json()["items"]]
        path = answer.links.get("next", {}).get("url", "")
        await make_delivery(engine, endpoint_id=endpoint_id)
    assert len(seen) == len(set(seen))
    assert set(seen) == before


@pytest.mark.parametrize("filters", ["state=delivered", "http_status=503", "event_type=rare"])
async def test_rare_matches_are_found_in_bounded_steps_each_once(
    client: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, filters: str
) -> None:
    monkeypatch.setattr(listings, "SCAN_MAX", 3)
    monkeypatch.setattr(listings, "SCAN_MAX_JOINED", 3)
    endpoint_id = await make_endpoint(engine)
    wanted = []
    for n in range(11):
        delivery = await make_delivery(engine, "pending", endpoint_id=endpoint_id)
        if n in (0, 1, 6, 10):
            wanted.append(str(delivery.id))
            await rows(engine, "UPDATE events SET event_type = 'rare' WHERE id = :id", id=delivery.event_id)
            await rows(
                engine,
                """
                UPDATE deliveries SET state = 'delivered', due_at = NULL, delivered_at = now(), last_status = 503 WHERE id = :id
                """,
                id=delivery.id,
            )
    found = await pages(client, f"/v1/deliveries?limit=2&{filters}")
    assert [i for page in found for i in page] == sorted(wanted, reverse=True)
    assert len(found) >= 3


@pytest.mark.parametrize(
    "query",
    [
        *("state=asleep", "limit=0", "limit=201", "limit=x", "endpoint_id=x", "http_status=7", "cursor=x", "unknown=1"),
        *(
            "since=yesterday",
            "since=2026-01-01",
            "until=0",
            "request_id=",
            "request_id=%00",
            "state=failed&state=failed",
        ),
        *("cursor=" + "A" * 30, "endpoint_id=" + "0" * 32, "cursor=%F0%9F%98%80"),
    ],
)
async def test_query_that_makes_no_sense_is_refused(client: httpx.AsyncClient, query: str) -> None:
    problem = problem_of(await client.get(f"/v1/deliveries?{query}"), 400, "INT-400-INVALID-PAYLOAD")
    assert problem["errors"][0]["pointer"] == "query/" + query.partition("=")[0]


async def test_cursor_of_other_filters_is_refused(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    for _ in range(2):
        await make_delivery(engine)
    cursor = (await client.get("/v1/deliveries?limit=1")).json()["next"]
    problem_of(await client.get(f"/v1/deliveries?state=pending&cursor={cursor}"), 400, "INT-400-INVALID-PAYLOAD")
    assert len((await client.get(f"/v1/deliveries?limit=9&cursor={cursor}")).json()["items"]) == 1


async def test_one_delivery_has_its_attempts(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "retry_scheduled")
    await rows(
        engine,
        """
        INSERT INTO delivery_attempts (delivery_id, generation, tenant_id, number, started_at, duration_ms, outcome,
                                       failure_class, retryable, http_status, retry_at)
        VALUES (:id, 1, 'default', 1, now(), 12, 'transient', 'http_status', true, 503, now() + interval '1 minute')
        """,
        id=delivery.id,
    )
    found = (await client.get(f"/v1/deliveries/{delivery.id}")).json()
    assert (found["request_id"], found["event_type"], found["last_status"]) == (
        delivery.request_id,
        "invoice.paid",
        503,
    )
    (attempt,) = found["timeline"]
    assert (attempt["http_status"], attempt["duration_ms"], attempt["retryable"]) == (503, 12, True)


async def test_unknown_delivery_is_not_found(client: httpx.AsyncClient) -> None:
    problem_of(await client.get(f"/v1/deliveries/{uuid4()}"), 404, "INT-404-NOT-FOUND")
    problem_of(await client.post(f"/v1/deliveries/{uuid4()}/retry", json={"reason": "x"}), 404, "INT-404-NOT-FOUND")
    problem_of(await client.get("/v1/deliveries/1"), 400, "INT-400-INVALID-PAYLOAD")


@pytest.mark.parametrize("state", ["failed", "dead_lettered"])
async def test_retry_sends_a_delivery_that_ran_out_again(
    client: httpx.AsyncClient, engine: AsyncEngine, state: str
) -> None:
    delivery = await make_delivery(engine, state)
    answer = await client.post(f"/v1/deliveries/{delivery.id}/retry", json={"reason": "mended"})
    assert answer.status_code == 202
    assert (answer.json()["previous_state"], answer.json()["delivery_id"]) == (state, str(delivery.id))
    async with engine.begin() as connection:
        for replay_id, generation in await claim_requested(connection, limit=9, lease_s=20):
            assert await carry_out_if_requested(connection, replay_id, generation) == 1
    assert await state_of(engine, delivery) == "replayed"
    assert (await one(engine, "SELECT actor FROM audit_events WHERE action = 'delivery.replayed'")).actor.startswith(
        "key:"
    )


@pytest.mark.parametrize("state", ["pending", "delivering", "delivered", "retry_scheduled", "replayed"])
async def test_retry_of_what_did_not_run_out_is_a_conflict(
    client: httpx.AsyncClient, engine: AsyncEngine, state: str
) -> None:
    delivery = await make_delivery(engine, state)
    answer = await client.post(f"/v1/deliveries/{delivery.id}/retry", json={"reason": "x"})
    problem_of(answer, 409, "INT-409-RECOVERY-REPLAY-CONFLICT")
    assert await rows(engine, "SELECT FROM replays") == []


@pytest.mark.parametrize(
    "body",
    [{}, {"reason": ""}, {"reason": "  "}, {"reason": "\x1e\u3000\ufeff"}, {"reason": "x", "more": 1}, {"reason": 1}],
)
async def test_retry_needs_a_reason(client: httpx.AsyncClient, engine: AsyncEngine, body: dict[str, object]) -> None:
    delivery = await make_delivery(engine, "failed")
    answer = await client.post(f"/v1/deliveries/{delivery.id}/retry", json=body)
    problem_of(answer, 400, "INT-400-INVALID-PAYLOAD")
