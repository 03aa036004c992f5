"""Around every request: its id, what was answered and how long it took, and a last net under everything."""

from __future__ import annotations

import re
import secrets
from time import perf_counter

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import explain, render

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[!-~]{1,256}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Envelope:
    """ASGI middleware, the outermost.

    Args:
        app: what is inside.
        registry: where requests are counted; by route, never by tenant.
    """

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        labels = ("method", "route", "status")
        self._requests = Counter("homing_api_requests_total", "Requests answered.", labels, registry=registry)
        self._seconds = Histogram(
            "homing_api_request_duration_seconds", "From the first byte to the answer.", labels[:2], registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP is passed through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, finished = perf_counter(), 0, False
        state = scope.setdefault("state", {})
        given = Request(scope).headers
        asked = given.get("x-request-id", "")
        trace = given.get("traceparent", "")
        state["given_request_id"] = asked if _REQUEST_ID.fullmatch(asked) else None
        state["request_id"] = state["given_request_id"] or f"req_{secrets.token_hex(12)}"
        state["traceparent"] = trace if _TRACEPARENT.fullmatch(trace) else None

        async def answer(message: Message) -> None:
            nonlocal status, finished
            if message["type"] == "http.response.start":
                status = message["status"]
                request_id = (b"x-request-id", state["request_id"].encode())
                message["headers"] = [*message.get("headers", []), request_id, *_HEADERS]
            await send(message)
            finished = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            if not status:
                await render(explain(error), state["request_id"], state["traceparent"])(scope, receive, answer)
            elif not finished:  # the answer can only be cut off
                raise
            # Otherwise the framework raises again what it has answered, and `explain` has logged.
        finally:
            route = getattr(scope.get("route"), "path", None) or "none"
            method = scope["method"] if scope["method"] in _METHODS else "other"
            took = perf_counter() - began
            self._requests.labels(method, route, str(status)).inc()
            self._seconds.labels(method, route).observe(took)
            caller = state.get("caller")
            log.info(
                "api.request",
                method=method,
                route=route,
                status=status,
                duration_ms=round(took * 1000, 1),
                request_id=state["request_id"],
                key=None if caller is None else caller.key_id,
            )
