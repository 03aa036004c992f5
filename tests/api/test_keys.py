"""API keys: how they are stored and recognised, and that a refusal tells nothing about why."""

from __future__ import annotations

import hmac
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api_keys import KEY, PREFIX, _check, _new_key, create_key, recognise, revoke_key
from tests.api.conftest import Knock, problem_of
from tests.factories import one, rows


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
    async with engine.begin() as connection:
        one_key = await create_key(connection, tenant_id="default", scopes=["admin"], actor="test")
        other = await create_key(connection, tenant_id="default", scopes=["admin"], actor="test")
        start = PREFIX + one_key["id"] + other["key"][len(PREFIX) + 12 : -6]
        assert await recognise(connection, start + _check(start)) is None


def test_secret_part_of_a_key_has_more_than_160_random_bits() -> None:
    made = {_new_key() for _ in range(300)}
    secrets = "".join(key[len(PREFIX) + 13 : -6] for _, key in made)
    assert len(secrets) == 300 * 32
    assert len(set(secrets)) ** 32 >= 2**160
    assert len({key_id for key_id, _ in made}) == 300


async def test_refused_keys_cost_the_same_work_and_get_the_same_bytes(
    knock: Knock, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown, wrong, expired, revoked: one look-up and one comparison each, and nothing in the answer tells them apart."""
    made = {}
    async with engine.begin() as connection:
        for name in ("wrong", "expired", "revoked"):
            made[name] = (await create_key(connection, tenant_id="default", scopes=["admin"], actor="test"))["key"]
        made["unknown"] = _new_key()[1]
        start = made["wrong"][: len(PREFIX) + 13] + "A" * 32
        made["wrong"] = start + _check(start)
        await revoke_key(connection, tenant_id="default", key_id=made["revoked"][len(PREFIX) :][:12], actor="test")
    expired = made["expired"][len(PREFIX) :][:12]
    await rows(engine, "UPDATE api_keys SET expires_at = now() WHERE id = :id", id=expired)
    client = await knock(key="")
    statements: list[str] = []
    compared: list[tuple[int, int]] = []

    def note(*arguments: Any) -> None:
        statements.append(arguments[2])

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    monkeypatch.setattr("app.api_keys.hmac", SimpleNamespace(compare_digest=compare))
    seen = {}
    for name, key in made.items():
        statements.clear()
        compared.clear()
        answer = await client.get(
            "/v1/deliveries", headers={"authorization": f"Bearer {key}", "x-request-id": "the-same"}
        )
        problem_of(answer, 401, "INT-401-UNAUTHENTICATED")
        seen[name] = (answer.content, answer.headers.raw, tuple(statements), tuple(compared))
    event.remove(engine.sync_engine, "before_cursor_execute", note)
    assert len(seen) == 4
    assert [work for work in seen.values() if work != seen["unknown"]] == []
    assert (len(seen["unknown"][2]), seen["unknown"][3]) == (1, ((32, 32),))


async def test_malformed_key_is_refused_without_asking_the_database(knock: Knock, engine: AsyncEngine) -> None:
    statements: list[str] = []

    def note(*arguments: Any) -> None:
        statements.append(arguments[2])

    client = await knock(key="")
    event.listen(engine.sync_engine, "before_cursor_execute", note)
    for key in ("", "x", "homing_live_", _new_key()[1][:-1] + "!", "homing_live_" + "a" * 12 + "_" + "A" * 38):
        answer = await client.get("/v1/deliveries", headers={"authorization": f"Bearer {key}"})
        problem_of(answer, 401, "INT-401-UNAUTHENTICATED")
    event.remove(engine.sync_engine, "before_cursor_execute", note)
    assert statements == []


async def test_key_that_is_used_is_marked_at_most_once_a_minute(knock: Knock, engine: AsyncEngine) -> None:
    client = await knock()
    used = "SELECT last_used_at FROM api_keys"
    assert (await one(engine, used)).last_used_at is None
    await client.get("/v1/deliveries")
    first = (await one(engine, used)).last_used_at
    await client.get("/v1/deliveries")
    assert (await one(engine, used)).last_used_at == first
    await rows(engine, "UPDATE api_keys SET last_used_at = now() - interval '61 seconds'")
    await client.get("/v1/deliveries")
    assert (await one(engine, used)).last_used_at > first
