"""The route class of everything under `/v1`: first who asks and whether they may, then what they sent, then the rest."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.routing import APIRoute
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.responses import Response

from app.api.problems import FieldError, Problem
from app.api.scopes import SCOPE_OF
from app.api.strict_json import StrictRequest
from app.api.surroundings import surroundings_of
from app.api_keys import Caller, Scope, recognise

#: Longest request body, in bytes.
BODY_MAX = 1 << 20


class GuardedRoute(APIRoute):
    """A route that needs an API key with the scope that `SCOPE_OF` gives for its operation."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **settings: Any) -> None:
        super().__init__(path, endpoint, **settings)
        if self.operation_id not in SCOPE_OF:
            raise LookupError(f"{path}: SCOPE_OF does not say which scope {self.operation_id} needs")
        self.scope: Scope = SCOPE_OF[self.operation_id]

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What the framework calls for each request of this route."""
        handle = super().get_route_handler()
        scope = SCOPE_OF.get(self.operation_id or "")

        async def guarded(request: Request) -> Response:
            caller = await _authenticate(request, surroundings_of(request).engine)
            if scope is None or scope not in caller.scopes:
                raise Problem("INT-403-FORBIDDEN", f"This needs a key with the scope {scope}.")
            request.state.caller = caller
            _refuse_unstorable(request)
            strict = StrictRequest(request.scope, request.receive)
            await strict.read(BODY_MAX)
            return await handle(strict)

        return guarded


async def _authenticate(request: Request, engine: AsyncEngine) -> Caller:
    """Who asks.

    Raises:
        Problem: 401, the same whether there is no key, or it is malformed, unknown, wrong, expired or revoked.
    """
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        async with engine.connect() as connection:
            connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            if caller := await recognise(connection, key.strip()):
                return caller
    raise Problem("INT-401-UNAUTHENTICATED", "Send a valid API key as `Authorization: Bearer homing_live_...`.")


def _refuse_unstorable(request: Request) -> None:
    """Refuse characters that Postgres cannot take, wherever in the URL they are, and a query parameter given twice."""
    if "\0" in request.scope["path"]:
        raise Problem("INT-404-NOT-FOUND", "There is no such thing, or it is not yours.")
    names: set[str] = set()
    for name, value in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if "\0" in name + value:
            raise _bad_query(name, "must not contain a NUL character")
        if name in names:
            raise _bad_query(name, "is given twice")
        names.add(name)


def _bad_query(name: str, detail: str) -> Problem:
    shown = name[:64].encode("unicode_escape").decode("ascii")
    error = FieldError(pointer=f"query/{shown}", detail=detail)
    return Problem("INT-400-INVALID-PAYLOAD", "The request is not valid; see errors.", errors=[error])
