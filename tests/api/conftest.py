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
from app.config import Settings
from app.sealing import SecretKeys

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
