"""Who may do what: every route with every scope and without a key, strangers' ids, and the wall behind the statements."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.application import ROUTERS
from app.api.guarded_route import GuardedRoute
from app.api.scopes import SCOPE_OF
from app.api.surroundings import Surroundings
from app.api_keys import KEY, Scope, create_key, recognise, revoke_key
from app.bulk_replay import request_bulk_replay
from app.endpoints import create_endpoint
from app.sealing import SecretKeys
from app.selection import make_selector
from tests.api.conftest import Knock, problem_of
from tests.factories import make_delivery, make_outbox_event, make_tenant, one, rows

ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
GUARDED = [route for route in ROUTES if route.path.startswith("/v1/")]

#: A body that passes, by operation; what is not here has none.
BODIES: dict[str, Any] = {
    "publishEvent": {"event_type": "a.b", "payload": 1},
    "createEndpoint": {"url": "https://example.com"},
    "changeEndpoint": {"name": "taken over"},
    "pauseEndpoint": {},
    "resumeEndpoint": {},
    "rotateEndpointSecret": {},
    "retryDelivery": {"reason": "x"},
    "replayRecovery": {"reason": "x"},
    "createReplay": {"selector": {"request_id": "stranger"}, "reason": "x", "dry_run": False},
    "cancelReplay": {"reason": "x"},
    "createTenant": {"id": "new"},
    "createKey": {"scopes": ["admin"]},
}


def method_of(route: APIRoute) -> str:
    return next(iter(route.methods))


def path_of(route: APIRoute, ids: dict[str, str]) -> str:
    path = route.path.replace(":path}", "}")
    return re.sub(r"\{(\w+)\}", lambda m: ids.get(m[1], str(uuid4())), path)


async def call(client: httpx.AsyncClient, route: APIRoute, ids: dict[str, str]) -> httpx.Response:
    path = path_of(route, ids)
    return await client.request(method_of(route), path, json=BODIES.get(str(route.operation_id)))


def test_everything_but_health_is_guarded_and_names_its_scope() -> None:
    assert {route.path for route in ROUTES if not isinstance(route, GuardedRoute)} == {"/livez", "/readyz", "/metrics"}
    assert {route.operation_id for route in GUARDED} == set(SCOPE_OF)


def test_route_that_names_no_scope_cannot_be_added() -> None:
    with pytest.raises(LookupError, match="nobodyKnowsThis"):
        GuardedRoute("/v1/new", lambda: None, operation_id="nobodyKnowsThis")


def test_writes_need_more_than_a_scope_to_read() -> None:
    reading = {Scope.DELIVERIES_READ, Scope.AUDIT_READ}
    assert not [r.operation_id for r in GUARDED if method_of(r) != "GET" and SCOPE_OF[str(r.operation_id)] in reading]


async def test_without_a_valid_key_every_route_gives_the_same_401(knock: Knock, surroundings: Surroundings) -> None:
    async with surroundings.engine.begin() as connection:
        good = await create_key(connection, tenant_id="default", scopes=list(Scope), actor="test")
        revoked = await create_key(connection, tenant_id="default", scopes=list(Scope), actor="test")
        await revoke_key(connection, tenant_id="default", key_id=revoked["id"], actor="test")
        expired = await create_key(connection, tenant_id="default", scopes=list(Scope), actor="test")
    await rows(surroundings.engine, "UPDATE api_keys SET expires_at = now() WHERE id = :id", id=expired["id"])
    key = good["key"]
    wrong = key[:30] + ("A" if key[30] != "A" else "B") + key[31:]
    client = await knock(key="")
    seen = set()
    for authorization in ("", f"Basic {key}", "Bearer", f"Bearer {key[:-1]}", f"Bearer {wrong}", f"Bearer {key}é"):
        answer = await client.get("/v1/deliveries", headers={"authorization": authorization.encode()})
        seen.add(str(problem_of(answer, 401, "INT-401-UNAUTHENTICATED") | {"request_id": ""}))
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for ended in (revoked["key"], expired["key"]):
        answer = await client.get("/v1/deliveries", headers={"authorization": f"Bearer {ended}"})
        seen.add(str(problem_of(answer, 401, "INT-401-UNAUTHENTICATED") | {"request_id": ""}))
    for route in GUARDED:
        answer = await call(client, route, {})
        seen.add(str(problem_of(answer, 401, "INT-401-UNAUTHENTICATED") | {"request_id": ""}))
    assert len(seen) == 1
    assert (await client.get("/v1/deliveries", headers={"authorization": f"bearer {key}"})).status_code == 200


async def test_each_scope_opens_its_routes_and_no_other(knock: Knock) -> None:
    for scope in Scope:
        client = await knock(scopes=(scope,))
        for route in GUARDED:
            answer = await call(client, route, {"api_key_id": "0" * 12})
            if SCOPE_OF[str(route.operation_id)] == scope and route.operation_id != "createTenant":
                assert answer.status_code not in (401, 403), (scope, route.path, answer.text)
            else:
                problem_of(answer, 403, "INT-403-FORBIDDEN")


async def test_who_may_not_is_told_so_before_the_body_is_looked_at(knock: Knock) -> None:
    client = await knock(scopes=("audit:read",))
    problem_of(await client.post("/v1/events", content=b"not json"), 403, "INT-403-FORBIDDEN")


# --- strangers -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def stranger(engine: AsyncEngine, keys: SecretKeys) -> dict[str, str]:
    """One of everything, of another tenant; ids by the name of the path parameter."""
    await make_tenant(engine, "other")
    async with engine.begin() as connection:
        endpoint = await create_endpoint(
            connection, keys, tenant_id="other", url="https://stranger.test/x", actor="stranger"
        )
        key = await create_key(connection, tenant_id="other", scopes=["admin"], actor="stranger")
    delivery = await make_delivery(
        engine, "dead_lettered", endpoint_id=endpoint["id"], tenant_id="other", request_id="stranger"
    )
    await rows(engine, "UPDATE events SET tenant_id = 'other'")
    await make_outbox_event(engine, tenant_id="other", request_id="stranger")
    letter = await one(engine, "SELECT id FROM dead_letters")
    async with engine.begin() as connection:
        replay = await request_bulk_replay(
            connection,
            tenant_id="other",
            selector=make_selector(request_id="stranger"),
            reason="stranger",
            actor="stranger",
        )
    return {
        "endpoint_id": str(endpoint["id"]),
        "delivery_id": str(delivery.id),
        "dead_letter_id": str(letter.id),
        "recovery_id": str(letter.id),
        "replay_id": str(replay.replay_id),
        "request_id": "stranger",
        "api_key_id": key["id"],
    }


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


TABLES = (
    *(
        "endpoints",
        "endpoint_secrets",
        "events",
        "deliveries",
        "delivery_attempts",
        "dead_letters",
        "replays",
        "replay_items",
    ),
    *("audit_events", "api_keys", "idempotency_keys"),
)


async def test_role_of_the_api_sees_and_writes_one_tenants_rows_only(
    surroundings: Surroundings, stranger: dict[str, str]
) -> None:
    for table in TABLES:
        async with surroundings.transaction("default") as connection:
            of_mine = text(f"SELECT count(*) FROM (SELECT 1 FROM {table}) AS t")
            seen = (await connection.execute(of_mine)).scalar_one()
            if table not in ("api_keys", "audit_events"):
                assert seen == 0, table
    for view in ("outbox_of_tenant", "outbox_rejected_of_tenant"):
        async with surroundings.transaction("default") as connection:
            assert (await connection.execute(text(f"SELECT count(*) FROM {view}"))).scalar_one() == 0
    for statement in (
        "INSERT INTO outbox_of_tenant (tenant_id, event_type, payload) VALUES ('other', 'a.b', '1')",
        "INSERT INTO endpoints (tenant_id, url) VALUES ('other', 'https://x')",
        "INSERT INTO tenants (id, name) VALUES ('mine', '')",
        "INSERT INTO audit_events (tenant_id, action, subject, actor) VALUES ('other', 'a', 's', 'x')",
        f"INSERT INTO endpoint_secrets (endpoint_id, key_id, sealed) VALUES ('{stranger['endpoint_id']}', 'k', '')",
        *("SELECT sealed FROM endpoint_secrets", "SELECT hash FROM api_keys", "SELECT * FROM outbox_events"),
        *("DELETE FROM deliveries", "DELETE FROM audit_events", "UPDATE deliveries SET state = 'delivered'"),
        *(
            "UPDATE dead_letters SET status = 'resolved'",
            "SELECT * FROM deliveries_default",
            "SELECT * FROM delivery_status",
        ),
    ):
        with pytest.raises(DBAPIError, match=r"permission denied|row-level security|check option"):
            async with surroundings.transaction("default") as connection:
                await connection.execute(text(statement))


async def test_tenant_and_role_end_with_the_transaction(surroundings: Surroundings) -> None:
    for _ in range(3):
        async with surroundings.transaction("default"):
            pass
    row = await one(surroundings.engine, "SELECT current_user AS who, current_setting('homing.tenant', true) AS tenant")
    assert row.who != "homing_api"
    assert not row.tenant


async def test_week_that_is_made_later_is_behind_the_wall_too(
    surroundings: Surroundings, engine: AsyncEngine, stranger: dict[str, str]
) -> None:
    await rows(engine, "SELECT homing_ensure_partitions(8)")
    await rows(
        engine,
        """
        INSERT INTO deliveries (id, tenant_id, event_id, endpoint_id)
        SELECT homing_uuid7_floor(now() + interval '7 weeks'), 'other', event_id, endpoint_id FROM deliveries LIMIT 1
        """,
    )
    async with surroundings.transaction("default") as connection:
        assert (await connection.execute(text("SELECT count(*) FROM deliveries"))).scalar_one() == 0


async def test_others_than_the_api_are_not_affected(engine: AsyncEngine) -> None:
    """A producer with INSERT alone still produces, and somebody's reporting role still reads."""
    role = f"homing_test_role_{uuid4().hex[:12]}"
    await make_delivery(engine)
    try:
        await rows(engine, f"CREATE ROLE {role}")
        await rows(engine, f"GRANT INSERT ON outbox_events TO {role}")
        await rows(engine, f"GRANT SELECT ON deliveries, delivery_status TO {role}")
        async with engine.begin() as connection:
            await connection.execute(text(f"SET LOCAL ROLE {role}"))
            await connection.execute(text("INSERT INTO outbox_events (event_type, payload) VALUES ('a.b', '1')"))
            for relation in ("deliveries", "delivery_status"):
                assert (await connection.execute(text(f"SELECT count(*) FROM {relation}"))).scalar_one() == 1
    finally:
        await rows(engine, f"DROP OWNED BY {role}")
        await rows(engine, f"DROP ROLE {role}")


# --- keys themselves -------------------------------------------------------------------------------------------------


async def test_key_is_stored_as_a_hash_and_recognised_whole_only(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        made = await create_key(connection, tenant_id="default", scopes=["audit:read"], actor="test")
    key = made["key"]
    assert KEY.fullmatch(key)
    assert key.split("_")[2] == made["id"]
    dump = str([tuple(r) for r in await rows(engine, "SELECT to_jsonb(k)::text FROM api_keys k")])
    assert key[-30:] not in dump
    async with engine.begin() as connection:
        caller = await recognise(connection, key)
        assert caller is not None
        assert (caller.tenant_id, caller.scopes) == ("default", {"audit:read"})
        for n in range(len(key)):
            assert await recognise(connection, key[:n] + ("x" if key[n] != "x" else "y") + key[n + 1 :]) is None
    used = await one(engine, "SELECT last_used_at FROM api_keys")
    assert used.last_used_at is not None


async def test_secret_of_one_key_does_not_open_under_the_id_of_another(engine: AsyncEngine) -> None:
    from app.api_keys import PREFIX, _check

    async with engine.begin() as connection:
        one_key = await create_key(connection, tenant_id="default", scopes=["admin"], actor="test")
        other = await create_key(connection, tenant_id="default", scopes=["admin"], actor="test")
        start = PREFIX + one_key["id"] + other["key"][len(PREFIX) + 12 : -6]
        assert await recognise(connection, start + _check(start)) is None
