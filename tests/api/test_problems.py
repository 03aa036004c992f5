"""Everything that is not a success is a problem with the same form, whoever found it out; nothing tells too much."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.api.application import make_application
from app.api.surroundings import Surroundings
from app.config import Settings
from app.db import make_engine
from app.sealing import SecretKeys
from tests.api.conftest import problem_of
from tests.factories import make_delivery, one, rows

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/nothing", "/v1/deliveries/", "/docs", "/v1/endpoints/%00", "/%F0%28"]
)
async def test_unknown_paths(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code in (400, 404)
    problem_of(answer, answer.status_code, answer.json()["error_code"])


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_other_methods(client: httpx.AsyncClient, method: str) -> None:
    answer = await client.request(method, "/v1/deliveries")
    problem_of(answer, 405, "INT-405-METHOD-NOT-ALLOWED")
    assert answer.headers["allow"] == "GET"


async def test_request_id_and_trace_are_the_requests(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/nothing", headers={"x-request-id": "mine", "traceparent": TRACE})
    problem = problem_of(answer, 404, "INT-404-NOT-FOUND")
    assert (problem["request_id"], problem["traceparent"], problem["retryable"]) == ("mine", TRACE, False)
    hostile = await client.get("/v1/nothing", headers={"x-request-id": "a b", "traceparent": "x"})
    problem = problem_of(hostile, 404, "INT-404-NOT-FOUND")
    assert problem["request_id"].startswith("req_")
    assert problem["traceparent"] is None


async def test_every_wrong_field_is_pointed_at(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/endpoints", json={"url": 1, "policy": {"jitter": 2}, "a/b~": 3})
    problem = problem_of(answer, 400, "INT-400-INVALID-PAYLOAD")
    assert {error["pointer"] for error in problem["errors"]} == {"/url", "/policy/jitter", "/a~1b~0"}


async def test_answers_are_not_cached_or_sniffed(client: httpx.AsyncClient) -> None:
    for path in ("/v1/deliveries", "/v1/nothing", "/livez"):
        answer = await client.get(path)
        assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-store", "nosniff")


async def test_postgres_away_is_503_and_may_be_tried_again(settings: Settings, keys: SecretKeys) -> None:
    engine = make_engine("postgresql://nobody@127.0.0.1:1/none", name="test", pool_size=1)
    application = make_application(Surroundings(settings, engine, keys))
    key = "homing_live_000000000000_" + "A" * 32
    from app.api_keys import _check

    headers = {"authorization": f"Bearer {key}{_check(key)}"}
    transport = httpx.ASGITransport(app=application)
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:
        for answer in (
            await client.get("/v1/deliveries"),
            await client.post("/v1/events", json={}),
            await client.get("/readyz"),
        ):
            problem = problem_of(answer, 503, "INT-503-DEPENDENCY-UNAVAILABLE")
            assert problem["retryable"]
            assert int(answer.headers["retry-after"]) > 0
        assert (await client.get("/livez")).json() == {"status": "ok"}
    await engine.dispose()


async def test_malformed_stored_row_is_503_and_not_guessed_at(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "pending")
    await rows(engine, "ALTER TABLE deliveries DROP CONSTRAINT deliveries_state_check")
    await rows(engine, "UPDATE deliveries SET state = 'teleported'")
    for path in ("/v1/deliveries", f"/v1/deliveries/{delivery.id}"):
        problem = problem_of(await client.get(path), 503, "INT-503-DEPENDENCY-UNAVAILABLE")
        assert "teleported" not in str(problem)


async def test_statement_that_takes_too_long_is_503(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def linger(connection: AsyncConnection, **named: object) -> None:
        await connection.execute(text("SET LOCAL statement_timeout = '20ms'"))
        await connection.execute(text("SELECT pg_sleep(60)"))

    monkeypatch.setattr("app.api.deliveries.page_of_deliveries", linger)
    problem_of(await client.get("/v1/deliveries"), 503, "INT-503-DEPENDENCY-UNAVAILABLE")


async def test_defect_of_ours_is_a_500_that_tells_nothing(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("app.api.deliveries.page_of_deliveries", fail)
    problem = problem_of(await client.get("/v1/deliveries"), 500, "INT-500-INTERNAL")
    assert "secret" not in str(problem)
    assert not problem["retryable"]


async def test_lost_race_is_a_409_that_may_be_tried_again(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, engine: AsyncEngine
) -> None:
    async def collide(connection: object, **named: object) -> None:
        await rows(engine, "INSERT INTO tenants (id, name) VALUES ('default', '')")

    monkeypatch.setattr("app.api.deliveries.page_of_deliveries", collide)
    problem = problem_of(await client.get("/v1/deliveries"), 409, "INT-409-RACE-LOST")
    assert problem["retryable"]


async def test_connection_that_breaks_within_a_write_is_503_and_the_same_again_has_one_effect(
    client: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.api import events

    publish = events.publish_event

    async def publish_and_break(connection: AsyncConnection, **named: Any) -> dict[str, Any]:
        made = await publish(connection, **named)
        process = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        await rows(engine, "SELECT pg_terminate_backend(:process)", process=process)
        return made

    order = {"json": {"event_type": "a.b", "payload": 1}, "headers": {"idempotency-key": "k"}}
    with monkeypatch.context() as broken:
        broken.setattr(events, "publish_event", publish_and_break)
        problem = problem_of(await client.post("/v1/events", **order), 503, "INT-503-DEPENDENCY-UNAVAILABLE")
    assert problem["retryable"]
    assert await rows(engine, "SELECT FROM outbox_events") == []
    for _ in range(2):
        assert (await client.post("/v1/events", **order)).status_code == 202
    assert len(await rows(engine, "SELECT FROM outbox_events")) == 1


@pytest.mark.parametrize(
    ("table", "change", "paths"),
    [
        ("endpoints", "status = 'gone'", ("/v1/endpoints", "/v1/endpoints/{endpoint_id}")),
        ("endpoints", "retry_factor = 'NaN', status = ''", ("/v1/endpoints",)),
        ("dead_letters", "status = 'lost'", ("/v1/dead-letters", "/v1/dead-letters/{letter_id}")),
        ("api_keys", "scopes = scopes || '{root}'", ("/v1/keys",)),
    ],
)
async def test_malformed_row_of_any_kind_is_503(
    client: httpx.AsyncClient, engine: AsyncEngine, table: str, change: str, paths: tuple[str, ...]
) -> None:
    delivery = await make_delivery(engine, "dead_lettered")
    ids = {"endpoint_id": delivery.endpoint_id, "letter_id": (await one(engine, "SELECT id FROM dead_letters")).id}
    checks = "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid = CAST(:table AS regclass)"
    for check in await rows(engine, checks, table=table):
        await rows(engine, f"ALTER TABLE {table} DROP CONSTRAINT {check.conname}")
    await rows(engine, f"UPDATE {table} SET {change}")
    for path in paths:
        problem_of(await client.get(path.format(**ids)), 503, "INT-503-DEPENDENCY-UNAVAILABLE")


async def test_remembered_answer_that_was_tampered_with_is_503_and_has_no_effect(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    order = {"json": {"url": "https://example.com"}, "headers": {"idempotency-key": "k"}}
    assert (await client.post("/v1/endpoints", **order)).status_code == 201
    await rows(engine, "UPDATE idempotency_keys SET body = set_byte(body, octet_length(body) - 1, 0)")
    await rows(engine, "UPDATE idempotency_keys SET body = set_byte(body, octet_length(body) - 2, 0)")
    problem_of(await client.post("/v1/endpoints", **order), 503, "INT-503-DEPENDENCY-UNAVAILABLE")
    assert len(await rows(engine, "SELECT FROM endpoints")) == 1
