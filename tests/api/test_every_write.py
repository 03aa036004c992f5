"""Idempotency-Key on every write there is: one effect, one answer, and both or neither in the database."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from app import idempotency
from app.api_keys import create_key
from app.bulk_replay import request_bulk_replay
from app.endpoints import create_endpoint
from app.sealing import SecretKeys
from app.selection import make_selector
from tests.api.conftest import Knock, problem_of
from tests.api.routes import BODIES, GUARDED, method_of, path_of
from tests.factories import make_delivery, one, rows

WRITES = {str(route.operation_id): route for route in GUARDED if method_of(route) != "GET"}
BODY = BODIES | {"createReplay": {"selector": {"request_id": "mine"}, "reason": "x", "dry_run": False}}
#: What a write can change; the time of a key's last use is no effect of one.
TABLES = (
    *(
        "outbox_events",
        "events",
        "deliveries",
        "endpoints",
        "endpoint_secrets",
        "replays",
        "replay_items",
        "dead_letters",
    ),
    *("tenants", "api_keys", "audit_events", "idempotency_keys"),
)


@pytest.fixture
async def mine(engine: AsyncEngine, keys: SecretKeys) -> dict[str, str]:
    """One of everything that a write can be done to; ids by the name of the path parameter."""
    async with engine.begin() as connection:
        endpoint = await create_endpoint(connection, keys, tenant_id="default", url="https://example.com", actor="test")
        key = await create_key(connection, tenant_id="default", scopes=["admin"], actor="test")
    endpoint_id = UUID(str(endpoint["id"]))
    delivery = await make_delivery(engine, "dead_lettered", endpoint_id=endpoint_id, request_id="mine")
    letter = await one(engine, "SELECT id FROM dead_letters")
    await make_delivery(engine, "dead_lettered", endpoint_id=endpoint_id, request_id="another")
    async with engine.begin() as connection:
        replay = await request_bulk_replay(
            connection,
            tenant_id="default",
            selector=make_selector(request_id="another"),
            reason="x",
            actor="test",
        )
    return {
        "endpoint_id": str(endpoint_id),
        "delivery_id": str(delivery.id),
        "recovery_id": str(letter.id),
        "replay_id": str(replay.replay_id),
        "api_key_id": str(key["id"]),
    }


@pytest.fixture(params=sorted(WRITES))
async def write(request: pytest.FixtureRequest, knock: Knock, engine: AsyncEngine, mine: dict[str, str]) -> Write:
    name = request.param
    operator = name == "createTenant"
    client = await (knock(tenant_id=None, scopes=("admin",)) if operator else knock())
    if name == "resumeEndpoint":
        await rows(engine, "UPDATE endpoints SET status = 'paused'")
    return Write(client, engine, WRITES[name], mine)


class Write:
    """One operation that writes, and what it is done to."""

    def __init__(self, client: httpx.AsyncClient, engine: AsyncEngine, route: APIRoute, ids: dict[str, str]) -> None:
        self.client = client
        self.engine = engine
        self.route = route
        self.ids = ids
        self.body: Any = BODY.get(str(route.operation_id))

    async def __call__(self, **changed: Any) -> httpx.Response:
        path = path_of(self.route, changed.get("ids", self.ids))
        return await self.client.request(
            method_of(self.route),
            path,
            json=changed.get("body", self.body),
            headers={"idempotency-key": changed.get("key", "k")},
        )

    async def stored(self) -> dict[str, list[str]]:
        return {
            table: [
                str(r.row)
                for r in await rows(
                    self.engine, f"SELECT to_jsonb(t) - 'last_used_at' AS row FROM {table} t ORDER BY 1"
                )
            ]
            for table in TABLES
        }


async def test_repeated_write_has_one_effect_and_the_same_answer(write: Write) -> None:
    before = await write.stored()
    first = await write()
    assert first.is_success, first.text
    after = await write.stored()
    assert [table for table in TABLES if after[table] != before[table] and table != "idempotency_keys"]
    again = await write()
    assert (again.status_code, again.content) == (first.status_code, first.content)
    for name in ("location", "etag", "content-type"):
        assert again.headers.get(name) == first.headers.get(name)
    assert ("idempotency-replayed" in first.headers, again.headers.get("idempotency-replayed")) == (False, "true")
    assert await write.stored() == after


async def test_its_key_for_another_body_or_target_is_a_conflict_without_effect(write: Write) -> None:
    assert (await write()).is_success
    after = await write.stored()
    elsewhere = {name: "f" * 12 if name == "api_key_id" else str(uuid4()) for name in write.ids}
    others = [await write(ids=elsewhere)] if "{" in write.route.path else []
    if write.body is not None:
        others.append(await write(body=_changed(write.body)))
    assert others
    for other in others:
        problem_of(other, 409, "INT-409-IDEMPOTENCY-CONFLICT")
    assert await write.stored() == after


def _changed(body: dict[str, Any]) -> dict[str, Any]:
    """Another body that is as acceptable."""
    other = {
        "event_type": {"event_type": "c.d"},
        "url": {"url": "https://example.org"},
        "name": {"name": "something else"},
        "id": {"id": "another"},
        "scopes": {"scopes": ["audit:read"]},
        "reason": {"reason": "something else"},
    }
    name = next((name for name in other if name in body), None)
    return body | (other[name] if name else {"reason": "something else"})


async def test_five_at_once_have_one_effect(write: Write) -> None:
    answers = await asyncio.gather(*(write() for _ in range(5)))
    assert {(answer.status_code, answer.content) for answer in answers} == {
        (answers[0].status_code, answers[0].content)
    }
    assert answers[0].is_success
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert (await one(write.engine, "SELECT count(*) FROM idempotency_keys")).count == 1


async def test_answer_that_cannot_be_remembered_leaves_no_effect(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is remembered in the transaction of the effect: when that breaks at its end, nothing has happened."""
    before = await write.stored()

    async def fail(*arguments: object) -> None:
        raise OperationalError("INSERT", {}, OSError("gone"))

    with monkeypatch.context() as broken:
        broken.setattr(idempotency, "remember", fail)
        problem_of(await write(), 503, "INT-503-DEPENDENCY-UNAVAILABLE")
    assert await write.stored() == before
    assert (await write()).is_success
