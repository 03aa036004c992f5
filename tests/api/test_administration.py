"""Audit, tenants and keys over HTTP."""

from __future__ import annotations

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api_keys import Scope
from app.replays import carry_out_if_requested, claim_requested
from tests.api.conftest import Knock, problem_of
from tests.factories import make_delivery, make_tenant, one


async def test_audit_shows_who_did_what_page_by_page(client: httpx.AsyncClient) -> None:
    made = (await client.post("/v1/endpoints", json={"url": "https://example.com"})).json()
    for act in ("pause", "resume"):
        await client.post(f"/v1/endpoints/{made['id']}/{act}", json={"reason": act})
    seen, path = [], "/v1/audit?limit=1"
    while path:
        answer = await client.get(path)
        seen += answer.json()["items"]
        path = answer.links.get("next", {}).get("url", "")
    assert [row["action"] for row in seen] == ["endpoint.active", "endpoint.paused", "endpoint.created", "key.created"]
    assert (seen[0]["before"], seen[0]["after"], seen[0]["reason"]) == (
        {"status": "paused"},
        {"status": "active"},
        "resume",
    )
    assert seen[0]["actor"].startswith("key:")
    assert (await client.get("/v1/audit?request_id=none")).json()["items"] == []


async def test_audit_of_a_request_id_shows_what_was_done_about_it_and_nothing_else(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    for request_id in ("order-1", "order-2"):
        delivery = await make_delivery(engine, "failed", request_id=request_id)
        retried = await client.post(f"/v1/deliveries/{delivery.id}/retry", json={"reason": f"for {request_id}"})
        assert retried.status_code == 202
    async with engine.begin() as connection:
        for replay_id, generation in await claim_requested(connection, limit=9, lease_s=20):
            await carry_out_if_requested(connection, replay_id, generation)
    found = (await client.get("/v1/audit?request_id=order-1")).json()["items"]
    assert {row["request_id"] for row in found} == {"order-1"}
    (replayed,) = (row for row in found if row["action"] == "delivery.replayed")
    assert (replayed["before"]["state"], replayed["after"]["state"]) == ("failed", "replayed")
    assert (replayed["reason"], replayed["actor"][:4]) == ("for order-1", "key:")


async def test_operator_makes_tenants_and_their_keys_and_reads_no_data(knock: Knock, engine: AsyncEngine) -> None:
    operator = await knock(tenant_id=None, scopes=("admin",))
    answer = await operator.post("/v1/tenants", json={"id": "acme", "name": "Acme"})
    assert (answer.status_code, answer.json()["name"]) == (201, "Acme")
    problem_of(await operator.post("/v1/tenants", json={"id": "acme"}), 409, "INT-409-CONFLICT")
    problem_of(await operator.post("/v1/tenants", json={"id": "a b"}), 400, "INT-400-INVALID-PAYLOAD")
    listed = (await operator.get("/v1/tenants")).json()["items"]
    assert [tenant["id"] for tenant in listed] == ["acme", "default"]
    problem_of(await operator.post("/v1/keys", json={"scopes": ["admin"]}), 400, "INT-400-INVALID-PAYLOAD")
    problem_of(await operator.post("/v1/keys?tenant_id=nobody", json={"scopes": ["admin"]}), 404, "INT-404-NOT-FOUND")
    made = await operator.post("/v1/keys?tenant_id=acme", json={"scopes": ["endpoints:write", "deliveries:read"]})
    assert made.status_code == 201
    theirs = await knock(key=made.json()["key"])
    assert (await theirs.post("/v1/endpoints", json={"url": "https://acme.test"})).status_code == 201
    assert (await one(engine, "SELECT tenant_id FROM endpoints")).tenant_id == "acme"
    for path in ("deliveries", "endpoints", "audit"):
        problem_of(await operator.get(f"/v1/{path}"), 403, "INT-403-FORBIDDEN")


async def test_tenants_admin_manages_its_own_keys_only(knock: Knock, engine: AsyncEngine) -> None:
    await make_tenant(engine, "acme")
    admin = await knock(tenant_id="acme", scopes=("admin",))
    problem_of(await admin.post("/v1/tenants", json={"id": "another"}), 403, "INT-403-FORBIDDEN")
    assert [tenant["id"] for tenant in (await admin.get("/v1/tenants")).json()["items"]] == ["acme"]
    made = (await admin.post("/v1/keys", json={"scopes": ["audit:read"], "name": "auditor"})).json()
    assert made["tenant_id"] == "acme"
    listed = (await admin.get("/v1/keys")).json()["items"]
    assert {key["name"] for key in listed} == {"", "auditor"}
    assert all("key" not in key and "hash" not in key for key in listed)
    auditor = await knock(key=made["key"])
    assert (await auditor.get("/v1/audit")).status_code == 200
    ended = await admin.delete(f"/v1/keys/{made['id']}")
    assert ended.json()["revoked_at"] is not None
    assert (await admin.delete(f"/v1/keys/{made['id']}")).json() == ended.json()
    problem_of(await auditor.get("/v1/audit"), 401, "INT-401-UNAUTHENTICATED")
    problem_of(await admin.post("/v1/keys?tenant_id=default", json={"scopes": ["admin"]}), 404, "INT-404-NOT-FOUND")


async def test_keys_are_listed_page_by_page(knock: Knock) -> None:
    admin = await knock()
    made = {(await admin.post("/v1/keys", json={"scopes": list(Scope)})).json()["id"] for _ in range(4)}
    seen, path = [], "/v1/keys?limit=2"
    while path:
        answer = await admin.get(path)
        seen += [key["id"] for key in answer.json()["items"]]
        path = answer.links.get("next", {}).get("url", "")
    assert len(seen) == 5
    assert made < set(seen)


async def test_key_with_an_end_that_has_passed_opens_nothing(knock: Knock) -> None:
    admin = await knock()
    made = (await admin.post("/v1/keys", json={"scopes": ["admin"], "expires_at": "2020-01-01T00:00:00Z"})).json()
    problem_of(await (await knock(key=made["key"])).get("/v1/keys"), 401, "INT-401-UNAUTHENTICATED")
    problem_of(await admin.post("/v1/keys", json={"scopes": ["root"]}), 400, "INT-400-INVALID-PAYLOAD")
    problem_of(await admin.post("/v1/keys", json={"scopes": []}), 400, "INT-400-INVALID-PAYLOAD")
