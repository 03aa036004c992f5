"""Who may do what: every route with every scope, with an operator's key, and without a key."""

from __future__ import annotations

import pytest

from app.api.guarded_route import GuardedRoute
from app.api.scopes import SCOPE_OF
from app.api.surroundings import Surroundings
from app.api_keys import Scope, create_key, revoke_key
from tests.api.conftest import Knock, problem_of
from tests.api.routes import GUARDED, ROUTES, call, method_of
from tests.factories import rows


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


async def test_operators_key_opens_what_manages_tenants_and_keys_and_nothing_else(knock: Knock) -> None:
    client = await knock(tenant_id=None, scopes=("admin",))
    for route in GUARDED:
        answer = await call(client, route, {"api_key_id": "0" * 12})
        if SCOPE_OF[str(route.operation_id)] == Scope.ADMIN:
            assert answer.status_code not in (401, 403), (route.path, answer.text)
        else:
            problem_of(answer, 403, "INT-403-FORBIDDEN")


async def test_who_may_not_is_told_so_before_the_body_is_looked_at(knock: Knock) -> None:
    client = await knock(scopes=("audit:read",))
    problem_of(await client.post("/v1/events", content=b"not json"), 403, "INT-403-FORBIDDEN")
