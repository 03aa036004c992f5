"""Idempotency-Key: one effect and one answer, however often and by however many at once."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app import failpoints
from app.idempotency import forget_old
from tests.api.conftest import Knock, problem_of
from tests.factories import make_delivery, make_endpoint, make_tenant, one, rows

EVENT = {"event_type": "a.b", "payload": 1}


async def test_repeated_request_gets_the_same_answer_and_has_one_effect(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    headers = {"idempotency-key": "k1"}
    first = await client.post("/v1/endpoints", json={"url": "https://example.com"}, headers=headers)
    again = await client.post("/v1/endpoints", json={"url": "https://example.com"}, headers=headers)
    assert (first.status_code, first.content) == (again.status_code, again.content)
    for name in ("etag", "location", "content-type"):
        assert first.headers[name] == again.headers[name]
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
    assert (await one(engine, "SELECT count(*) FROM endpoints")).count == 1


async def test_remembered_answer_does_not_show_its_secret_to_who_reads_the_table(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    for path, body, name in (
        ("/v1/endpoints", {"url": "https://example.com"}, "secret"),
        ("/v1/keys", {"scopes": ["admin"]}, "key"),
    ):
        answer = await client.post(path, json=body, headers={"idempotency-key": name})
        stored = await one(engine, "SELECT body, sealed FROM idempotency_keys WHERE key = :key", key=name)
        assert stored.sealed
        assert answer.json()[name].encode() not in bytes(stored.body)
        again = await client.post(path, json=body, headers={"idempotency-key": name})
        assert again.json()[name] == answer.json()[name]


async def test_key_for_another_body_action_or_target_is_a_conflict(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    one_id, other_id = await make_endpoint(engine), await make_endpoint(engine)
    headers = {"idempotency-key": "k"}
    assert (await client.post(f"/v1/endpoints/{one_id}/pause", json={}, headers=headers)).status_code == 200
    for path, body in (
        (f"/v1/endpoints/{one_id}/pause", {"reason": "other body"}),
        (f"/v1/endpoints/{one_id}/resume", {}),
        (f"/v1/endpoints/{other_id}/pause", {}),
        ("/v1/events", EVENT),
    ):
        problem_of(await client.post(path, json=body, headers=headers), 409, "INT-409-IDEMPOTENCY-CONFLICT")
    assert {r.status for r in await rows(engine, "SELECT status FROM endpoints WHERE id = :id", id=other_id)} == {
        "active"
    }


async def test_fifty_at_once_have_one_effect(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    answers = await asyncio.gather(
        *(client.post("/v1/events", json=EVENT, headers={"idempotency-key": "k"}) for _ in range(50))
    )
    assert {(answer.status_code, answer.content) for answer in answers} == {(202, answers[0].content)}
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert (await one(engine, "SELECT count(*) FROM outbox_events")).count == 1


async def test_fifty_replays_at_once_are_one(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "failed")
    path = f"/v1/deliveries/{delivery.id}/retry"
    answers = await asyncio.gather(
        *(client.post(path, json={"reason": "x"}, headers={"idempotency-key": "k"}) for _ in range(50))
    )
    assert {(answer.status_code, answer.content) for answer in answers} == {(202, answers[0].content)}
    assert (await one(engine, "SELECT count(*) FROM replays")).count == 1


@pytest.mark.parametrize(("place", "there"), [("write.before_commit", 0), ("write.committed", 1)])
async def test_write_that_ends_around_its_commit_is_made_once_when_repeated(
    client: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, place: str, there: int
) -> None:
    def end_at(name: str) -> None:
        if name == place:
            raise RuntimeError(name)

    monkeypatch.setattr(failpoints, "reach", end_at)
    headers = {"idempotency-key": "k"}
    problem_of(await client.post("/v1/events", json=EVENT, headers=headers), 500, "INT-500-INTERNAL")
    assert (await one(engine, "SELECT count(*) FROM outbox_events")).count == there
    monkeypatch.undo()
    first, second = [await client.post("/v1/events", json=EVENT, headers=headers) for _ in range(2)]
    assert (first.status_code, first.content) == (202, second.content)
    assert [("idempotency-replayed" in answer.headers) for answer in (first, second)] == [there == 1, True]
    assert (await one(engine, "SELECT count(*) FROM outbox_events")).count == 1


async def test_bare_and_quoted_key_are_the_same(client: httpx.AsyncClient) -> None:
    first = await client.post("/v1/events", json=EVENT, headers={"idempotency-key": "abc-1"})
    again = await client.post("/v1/events", json=EVENT, headers={"idempotency-key": '"abc-1"'})
    assert first.content == again.content
    for key in ("", " ", "a b", '"a', "é".encode(), "x" * 256):
        answer = await client.post("/v1/events", json=EVENT, headers={"idempotency-key": key})
        problem_of(answer, 400, "INT-400-INVALID-PAYLOAD")


async def test_two_keys_are_not_guessed_between(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    for keys in (("a", "b"), ("a", "a")):
        answer = await client.post("/v1/events", json=EVENT, headers=[("idempotency-key", key) for key in keys])
        problem = problem_of(answer, 400, "INT-400-INVALID-PAYLOAD")
        assert problem["errors"][0]["pointer"] == "header/Idempotency-Key"
    assert await rows(engine, "SELECT FROM outbox_events") == []


async def test_without_a_key_every_request_counts(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    for _ in range(2):
        await client.post("/v1/events", json=EVENT)
    assert (await one(engine, "SELECT count(*) FROM outbox_events")).count == 2


async def test_refused_request_leaves_its_key_free(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "delivered")
    path, headers = f"/v1/deliveries/{delivery.id}/retry", {"idempotency-key": "k"}
    problem_of(await client.post(path, json={"reason": "x"}, headers=headers), 409, "INT-409-RECOVERY-REPLAY-CONFLICT")
    assert await rows(engine, "SELECT FROM idempotency_keys") == []
    assert (await client.post("/v1/events", json=EVENT, headers=headers)).status_code == 202


async def test_same_key_of_two_tenants_is_two_keys(knock: Knock, engine: AsyncEngine) -> None:
    await make_tenant(engine, "other")
    answers = [
        await (await knock(tenant_id=tenant)).post("/v1/events", json=EVENT, headers={"idempotency-key": "k"})
        for tenant in ("default", "other")
    ]
    assert answers[0].json()["id"] != answers[1].json()["id"]


@pytest.mark.parametrize(("age", "left"), [("6 days", 1), ("8 days", 0)])
async def test_answers_are_forgotten_after_a_week(
    client: httpx.AsyncClient, engine: AsyncEngine, age: str, left: int
) -> None:
    await client.post("/v1/events", json=EVENT, headers={"idempotency-key": "k"})
    await rows(engine, f"UPDATE idempotency_keys SET created_at = now() - interval '{age}'")
    async with engine.begin() as connection:
        assert await forget_old(connection) == 1 - left
