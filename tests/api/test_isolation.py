"""Strangers: what is another tenant's looks like what does not exist, by the statements alone and by the wall alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.surroundings import Surroundings
from tests.api.conftest import Knock, problem_of
from tests.api.routes import BODIES, GUARDED, call, method_of
from tests.factories import rows


async def _of_the_stranger(engine: AsyncEngine) -> list[str]:
    tables = ("endpoints", "deliveries", "dead_letters", "replays", "api_keys", "outbox_events", "audit_events")
    return [
        str(row.row)
        for table in tables
        for row in await rows(engine, f"SELECT to_jsonb(t) AS row FROM {table} t WHERE tenant_id = 'other' ORDER BY 1")
    ]


async def _try_everything(client: httpx.AsyncClient, stranger: dict[str, str]) -> None:
    for route in GUARDED:
        if "{" in route.path:
            foreign = await call(client, route, stranger)
            missing = await call(client, route, {"api_key_id": "0" * 12})
            assert foreign.status_code == 404, (route.path, foreign.text)
            assert _without_request_id(foreign) == _without_request_id(missing)
            assert dict(foreign.headers) | {"x-request-id": ""} == dict(missing.headers) | {"x-request-id": ""}
        elif method_of(route) == "GET":
            answer = await client.get(route.path)
            assert answer.status_code == 200, answer.text
            assert "stranger" not in answer.text
            assert not [i for i in stranger.values() if i in answer.text]
    for query in (
        f"deliveries?endpoint_id={stranger['endpoint_id']}",
        "deliveries?request_id=stranger",
        "deliveries?state=dead_lettered",
        f"dead-letters?endpoint_id={stranger['endpoint_id']}",
        "dead-letters?request_id=stranger",
        f"dead-letters/groups?endpoint_id={stranger['endpoint_id']}",
        "audit?request_id=stranger",
    ):
        assert (await client.get(f"/v1/{query}")).json()["items"] == []
    problem_of(await client.post("/v1/replays", json=BODIES["createReplay"]), 404, "INT-404-NOT-FOUND")
    problem_of(await client.get("/v1/keys?tenant_id=other"), 404, "INT-404-NOT-FOUND")


def _without_request_id(answer: httpx.Response) -> str:
    return answer.text.replace(answer.headers["x-request-id"], "")


async def test_what_is_anothers_looks_like_what_does_not_exist_and_stays_as_it_is(
    knock: Knock, engine: AsyncEngine, stranger: dict[str, str]
) -> None:
    client = await knock()
    before = await _of_the_stranger(engine)
    await _try_everything(client, stranger)
    assert await _of_the_stranger(engine) == before


async def test_statements_alone_keep_tenants_apart(
    knock: Knock, surroundings: Surroundings, engine: AsyncEngine, stranger: dict[str, str]
) -> None:
    """The wall taken away: the transactions run as the owner, for whom no policy holds."""
    client = await knock()
    surroundings.walled = False
    before = await _of_the_stranger(engine)
    await _try_everything(client, stranger)
    assert await _of_the_stranger(engine) == before


@pytest.fixture
def no_tenant_filters(engine: AsyncEngine) -> Iterator[None]:
    """Every comparison with the tenant, in every statement, is taken away before it reaches Postgres."""
    taken_away = 0

    def rewrite(*arguments: Any) -> tuple[str, Any]:
        nonlocal taken_away
        statement, parameters = arguments[2], arguments[3]
        bare, count = re.subn(
            r"(?:\w+\.)?tenant_id (?:=|IS NOT DISTINCT FROM) (%\(tenant_id\)s(?:::\w+)?)",
            r"(CAST(\1 AS text) IS NOT NULL)",
            statement,
        )
        taken_away += count
        return bare, parameters

    event.listen(engine.sync_engine, "before_cursor_execute", rewrite, retval=True)
    yield
    event.remove(engine.sync_engine, "before_cursor_execute", rewrite)
    assert taken_away > 10


async def test_wall_keeps_tenants_apart_when_the_statements_forget_to(
    knock: Knock, engine: AsyncEngine, stranger: dict[str, str], no_tenant_filters: None
) -> None:
    client = await knock()
    before = await _of_the_stranger(engine)
    await _try_everything(client, stranger)
    assert await _of_the_stranger(engine) == before


async def test_without_filters_and_without_wall_strangers_would_be_seen(
    knock: Knock, surroundings: Surroundings, stranger: dict[str, str], no_tenant_filters: None
) -> None:
    """The test above is one: what it takes away matters."""
    client = await knock()
    surroundings.walled = False
    assert "stranger" in (await client.get("/v1/dead-letters")).text
    assert (await client.get(f"/v1/deliveries/{stranger['delivery_id']}")).status_code == 200
    for route in GUARDED[:20]:
        if "{" in route.path and method_of(route) == "GET":
            assert (await call(client, route, stranger)).status_code == 200, route.path
