"""How every write is done: in one transaction, once per idempotency key, with the answer remembered beside the effect."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated

from fastapi import Header, Request
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app import failpoints, idempotency
from app.api.problems import FieldError, Problem
from app.api.surroundings import WRITE_TIMEOUT, Surroundings, caller_of, surroundings_of
from app.api_keys import OPERATORS, Caller

# Visible ASCII, bare; or a Structured Field string, RFC 9651 section 3.3.3.
_BARE = "[!#-~]{1,255}"
_QUOTED = r'"((?:[ !#-\[\]-~]|\\["\\]){1,255})"'

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Repeat a request under its key and it has no second effect: the first answer comes again, with "
        "`Idempotency-Replayed: true`, for 7 days. With another body, target or action the key is refused (409). Bare or "
        "quoted, 1 to 255 visible ASCII characters. Optional: without it every request counts for itself.",
        json_schema_extra={"example": "8e03978e-40d5-43dd-bc93-6894a57f9324", "pattern": f"^({_BARE}|{_QUOTED})$"},
    ),
]


@dataclass(frozen=True)
class Answer:
    """What a write came to."""

    status: int
    body: BaseModel | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    secret: bool = False
    """Whether the body shows a secret: it is sealed before it is remembered."""


@dataclass(frozen=True)
class Write:
    """One write request."""

    surroundings: Surroundings
    caller: Caller
    key: str | None
    target: str
    body: bytes

    async def once(
        self, work: Callable[[AsyncConnection], Awaitable[Answer]], *, tenant_id: str | None = None
    ) -> Response:
        """Do the work in a transaction, unless this request was answered before: then give that answer again.

        Args:
            work: makes its changes on the connection it is given, and says what to answer.
            tenant_id: whose data it changes, if not the caller's.
        """
        tenant = tenant_id or self.caller.tenant_id
        async with self.surroundings.transaction(tenant, at_most=WRITE_TIMEOUT) as connection:
            if self.key is None:
                return _response(_plain(await work(connection)))
            request = idempotency.Request(tenant or OPERATORS, self.key, self.target, sha256(self.body).digest())
            if known := await idempotency.recall(connection, request):
                return _response(self._opened(known, request), replayed=True)
            answer = await work(connection)
            plain = _plain(answer)
            await idempotency.remember(connection, request, self._sealed(plain, request) if answer.secret else plain)
            failpoints.reach("write.before_commit")
        failpoints.reach("write.committed")
        return _response(plain)

    def _sealed(self, plain: idempotency.Remembered, request: idempotency.Request) -> idempotency.Remembered:
        body = self.surroundings.keys.seal(plain.body, request.context)
        return idempotency.Remembered(plain.status, plain.headers, body, sealed=True)

    def _opened(self, known: idempotency.Remembered, request: idempotency.Request) -> idempotency.Remembered:
        if not known.sealed:
            return known
        body = self.surroundings.keys.open(known.body, request.context)
        return idempotency.Remembered(known.status, known.headers, body, sealed=False)


async def write_of(request: Request, idempotency_key: IdempotencyKey = None) -> Write:
    """The write that a request is, for the routes to depend on; `idempotency_key` is there to be described."""
    query = request.scope["query_string"].decode("latin-1")
    target = f"{request.method} {request.url.path}" + (f"?{query}" if query else "")
    return Write(surroundings_of(request), caller_of(request), _key_of(request), target, await request.body())


def _key_of(request: Request) -> str | None:
    """The idempotency key, without its quotes.

    Raises:
        Problem: it is malformed, or there are several: which of them is meant is not guessed at.
    """
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) == 1 and (quoted := re.fullmatch(_QUOTED, given[0])):
        return re.sub(r'\\(["\\])', r"\1", quoted[1])
    if len(given) == 1 and re.fullmatch(_BARE, given[0]):
        return given[0]
    error = FieldError(pointer="header/Idempotency-Key", detail="must be 1 to 255 visible ASCII characters, given once")
    raise Problem("INT-400-INVALID-PAYLOAD", "The request is not valid; see errors.", errors=[error])


def _plain(answer: Answer) -> idempotency.Remembered:
    body = b"" if answer.body is None else answer.body.model_dump_json().encode()
    return idempotency.Remembered(answer.status, answer.headers, body, sealed=False)


def _response(answer: idempotency.Remembered, *, replayed: bool = False) -> Response:
    headers = dict(answer.headers) | ({"idempotency-replayed": "true"} if replayed else {})
    return Response(answer.body, answer.status, headers, "application/json" if answer.body else None)
