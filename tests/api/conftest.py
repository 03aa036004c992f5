"""The application on the test's own database, spoken to through ASGI, and keys for whoever a test needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.application import make_application
from app.api.surroundings import Surroundings
from app.api_keys import Scope, create_key
from app.bulk_replay import request_bulk_replay
from app.config import Settings
from app.endpoints import create_endpoint
from app.sealing import SecretKeys
from app.selection import make_selector
from tests.factories import make_delivery, make_outbox_event, make_tenant, one, rows

Knock = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
def surroundings(settings: Settings, engine: AsyncEngine, keys: SecretKeys) -> Surroundings:
    return Surroundings(settings, engine, keys)


@pytest.fixture
async def knock(surroundings: Surroundings) -> AsyncIterator[Knock]:
    """Makes clients: `await knock(scopes=..., tenant_id=...)`; without scopes, all that a tenant's key may have."""
    application = make_application(surroundings)
    clients: list[httpx.AsyncClient] = []

    async def make(
        *, scopes: tuple[str, ...] = tuple(Scope), tenant_id: str | None = "default", key: str | None = None
    ) -> httpx.AsyncClient:
        if key is None:
            async with surroundings.engine.begin() as connection:
                made = await create_key(connection, tenant_id=tenant_id, scopes=scopes, actor="test")
            key = made["key"]
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=application),
            base_url="http://api",
            headers={"authorization": f"Bearer {key}"} if key else {},
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
async def client(knock: Knock) -> httpx.AsyncClient:
    """Of tenant default, with every scope."""
    return await knock()


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


def problem_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem that a response is, checked for form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == {
        *("type", "title", "status", "detail", "error_code", "request_id", "traceparent", "retryable", "errors")
    }
    assert (body["status"], body["error_code"]) == (status, code)
    assert body["request_id"] == response.headers["x-request-id"]
    return body
