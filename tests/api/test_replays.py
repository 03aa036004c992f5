"""Bulk replay over HTTP: tried dry, ordered, followed and cancelled."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.api.conftest import problem_of
from tests.factories import make_delivery, make_endpoint, one, rows


async def dead_letters(engine: AsyncEngine, count: int) -> str:
    endpoint_id = await make_endpoint(engine)
    for _ in range(count):
        await make_delivery(engine, "dead_lettered", endpoint_id=endpoint_id)
    return str(endpoint_id)


async def test_order_is_a_dry_run_unless_it_says_otherwise(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    endpoint_id = await dead_letters(engine, 3)
    order = {"selector": {"endpoint_id": endpoint_id}, "reason": "mended", "max_items": 2}
    answer = await client.post("/v1/replays", json=order)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["dry_run"], body["matched"], body["items"]) == (True, 3, 2)
    assert body["endpoints"] == [{"endpoint_id": endpoint_id, "count": 3}]
    assert await rows(engine, "SELECT FROM replays") == []


async def test_replay_is_followed_and_cancelled(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    endpoint_id = await dead_letters(engine, 3)
    order = {"selector": {"endpoint_id": endpoint_id}, "reason": "mended", "dry_run": False, "expected_count": 3}
    answer = await client.post("/v1/replays", json=order)
    assert answer.status_code == 202, answer.text
    path = answer.headers["location"]
    shown = (await client.get(path)).json()
    assert (shown["state"], shown["items"], shown["waiting"]) == ("requested", 3, 3)
    assert shown["selector"] == {"endpoint_id": endpoint_id}
    cancelled = (await client.post(f"{path}/cancel", json={"reason": "changed my mind"})).json()
    assert (cancelled["state"], cancelled["cancelled"], cancelled["cancel_reason"]) == (
        "cancelled",
        3,
        "changed my mind",
    )
    problem_of(await client.post(f"{path}/cancel", json={"reason": "again"}), 409, "INT-409-CONFLICT")


async def test_replay_that_would_be_much_larger_than_expected_is_refused(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    endpoint_id = await dead_letters(engine, 3)
    order = {"selector": {"endpoint_id": endpoint_id}, "reason": "x", "dry_run": False, "expected_count": 1}
    problem_of(await client.post("/v1/replays", json=order), 409, "INT-409-CONFLICT")
    nothing = order | {"expected_count": None, "selector": {"source": "none"}}
    problem_of(await client.post("/v1/replays", json=nothing), 404, "INT-404-NOT-FOUND")


async def test_high_concurrency_needs_its_switches(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    endpoint_id = await dead_letters(engine, 1)
    await rows(
        engine,
        """
        INSERT INTO dead_letters (delivery_id, generation, tenant_id, endpoint_id, event_id, event_type, request_id, payload,
                                  failure_class, attempts)
        SELECT delivery_id, generation + n, tenant_id, endpoint_id, event_id, event_type, request_id, payload, failure_class, 5
        FROM dead_letters, generate_series(1, 49) AS n
        """,
    )
    order = {"selector": {"endpoint_id": endpoint_id}, "reason": "x", "concurrency": 20}
    problem_of(await client.post("/v1/replays", json=order), 400, "INT-400-INVALID-PAYLOAD")
    allowed = order | {"allow_high_concurrency": True}
    problem_of(await client.post("/v1/replays", json=allowed), 409, "INT-409-CONFLICT")
    assert (await client.post("/v1/replays", json=allowed | {"confirm_large": True})).status_code == 200


@pytest.mark.parametrize(
    "order",
    [
        {"selector": {}, "reason": "x"},
        {"reason": "x"},
        {"selector": {"request_id": "r"}},
        {"selector": {"request_id": "r"}, "reason": " "},
        {"selector": {"request_id": "r", "more": 1}, "reason": "x"},
        {"selector": {"event_type": "*"}, "reason": "x"},
        {"selector": {"http_status": "500"}, "reason": "x"},
        {"selector": {"after": "2026-01-02T00:00:00Z", "before": "2026-01-01T00:00:00Z"}, "reason": "x"},
        {"selector": {"request_id": "r"}, "reason": "x", "dry_run": "no"},
        {"selector": {"request_id": "r"}, "reason": "x", "rate_per_s": 0},
        {"selector": {"request_id": "r"}, "reason": "x", "rate_per_s": 10**400},
    ],
)
async def test_order_that_makes_no_sense_is_refused(client: httpx.AsyncClient, order: dict[str, object]) -> None:
    problem_of(await client.post("/v1/replays", json=order), 400, "INT-400-INVALID-PAYLOAD")


async def test_listing_shows_each_replay_once(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    deliveries = [await make_delivery(engine, "failed") for _ in range(3)]
    made = []
    for delivery in deliveries:
        answer = await client.post(f"/v1/deliveries/{delivery.id}/retry", json={"reason": "x"})
        made.append(answer.json()["replay_id"])
    seen, path = [], "/v1/replays?limit=2"
    while path:
        answer = await client.get(path)
        seen += [item["replay_id"] for item in answer.json()["items"]]
        path = answer.links.get("next", {}).get("url", "")
    assert seen == made[::-1]
    assert (await client.get("/v1/replays?state=done")).json() == {"items": [], "next": None}
    assert (await one(engine, "SELECT count(*) FROM replays")).count == 3


async def test_unknown_replay_is_not_found(client: httpx.AsyncClient) -> None:
    problem_of(await client.get(f"/v1/replays/{uuid4()}"), 404, "INT-404-NOT-FOUND")
    problem_of(await client.post(f"/v1/replays/{uuid4()}/cancel", json={"reason": "x"}), 404, "INT-404-NOT-FOUND")
