"""Dead letters over HTTP: listed by every filter, with their evidence, and grouped by cause."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app import listings
from tests.api.conftest import problem_of
from tests.factories import make_delivery, make_endpoint, one, rows


async def ids(client: httpx.AsyncClient, query: str) -> list[str]:
    answer = await client.get(f"/v1/dead-letters{query}")
    assert answer.status_code == 200, answer.text
    return [item["delivery_id"] for item in answer.json()["items"]]


async def test_filters_find_what_matches_all_of_them(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    wanted = await make_delivery(engine, "dead_lettered", request_id="r1")
    for _ in range(2):
        await make_delivery(engine, "dead_lettered")
    await rows(
        engine,
        """
        UPDATE dead_letters SET status = 'resolved', event_type = 'a.b', failure_class = 'timeout', last_http_status = 504
        WHERE delivery_id = :id
        """,
        id=wanted.id,
    )
    for query in (
        *("?request_id=r1", f"?endpoint_id={wanted.endpoint_id}", "?status=resolved", "?event_type=a.b"),
        *("?failure_class=timeout", "?http_status=504", "?request_id=r1&status=resolved&since=2026-01-01T00:00:00Z"),
    ):
        assert await ids(client, query) == [str(wanted.id)], query
    assert len(await ids(client, "?status=open")) == 2
    assert len(await ids(client, "")) == 3
    assert await ids(client, "?until=2020-01-01T00:00:00Z") == []


async def test_pages_show_each_once_even_where_few_match(
    client: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "SCAN_MAX", 2)
    endpoint_id = await make_endpoint(engine)
    made = [await make_delivery(engine, "dead_lettered", endpoint_id=endpoint_id) for _ in range(7)]
    rare = [made[0].id, made[5].id]
    await rows(engine, "UPDATE dead_letters SET failure_class = 'tls' WHERE delivery_id = ANY(:ids)", ids=rare)
    seen, path = [], "/v1/dead-letters?failure_class=tls&limit=1"
    while path:
        answer = await client.get(path)
        seen += [item["delivery_id"] for item in answer.json()["items"]]
        path = answer.links.get("next", {}).get("url", "")
    assert seen == [str(i) for i in reversed(rare)]


async def test_one_dead_letter_has_its_evidence(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "dead_lettered")
    letter = await one(engine, "UPDATE dead_letters SET response = 'sorry', failure_detail = 'detail' RETURNING id")
    found = (await client.get(f"/v1/dead-letters/{letter.id}")).json()
    assert (found["payload"], found["response"], found["failure_detail"]) == ('{"amount": 1}', "sorry", "detail")
    assert found["request_id"] == delivery.request_id
    problem_of(await client.get(f"/v1/dead-letters/{uuid4()}"), 404, "INT-404-NOT-FOUND")


async def test_groups_tell_causes_apart(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    for _ in range(3):
        await make_delivery(engine, "dead_lettered", endpoint_id=endpoint_id)
    await make_delivery(engine, "dead_lettered", endpoint_id=endpoint_id)
    await rows(
        engine,
        "UPDATE dead_letters SET failure_class = 'tls' WHERE id = (SELECT id FROM dead_letters ORDER BY id LIMIT 1)",
    )
    found = (await client.get("/v1/dead-letters/groups")).json()["items"]
    assert [(group["failure_class"], group["count"]) for group in found] == [("http_status", 3), ("tls", 1)]
    (group,) = (await client.get("/v1/dead-letters/groups?failure_class=tls")).json()["items"]
    assert len(group["samples"]) == 1
    problem_of(await client.get("/v1/dead-letters/groups?limit=0"), 400, "INT-400-INVALID-PAYLOAD")
