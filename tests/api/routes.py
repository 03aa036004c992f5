"""All routes of the API, and how to call each of them with something that passes."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import httpx
from fastapi.routing import APIRoute

from app.api.application import ROUTERS

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
