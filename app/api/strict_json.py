"""Request bodies: read up to a limit, and parsed by the letter of RFC 8259 where Python's parser is lax.

Refused: other media types, more than the limit, bytes that are not UTF-8, depth above 64, a name twice in one object, NaN and
infinities, numbers beyond a double, NUL characters and lone surrogates, which Postgres cannot store.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, Final, NoReturn

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.api.problems import FieldError, Problem

DEPTH_MAX: Final = 64


class StrictRequest(Request):
    """A request whose body has been read and parsed by `read`; the framework takes it from here."""

    read_body: bytes = b""
    parsed: Any = None

    async def read(self, limit: int) -> None:
        """Read the body.

        Raises:
            Problem: it is too large, not JSON, or not acceptable JSON.
        """
        declared = self.headers.get("content-length", "")
        if declared.isdigit() and int(declared[:18]) > limit:
            raise _too_large(limit)
        chunks, size = [], 0
        try:
            async for chunk in self.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
        except ClientDisconnect:
            # Nobody is there to read this; but it is no defect either.
            raise _malformed("the connection ended before the body did") from None
        self.read_body = b"".join(chunks)
        if not self.read_body:
            return
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise Problem("INT-415-UNSUPPORTED-MEDIA-TYPE", "Send the body as application/json.")
        self.parsed = parse(self.read_body)

    async def body(self) -> bytes:
        """The body's bytes."""
        return self.read_body

    async def json(self) -> Any:
        """The body, parsed."""
        return self.parsed


def parse(body: bytes) -> Any:
    """The JSON value of a body.

    Raises:
        Problem: it is not acceptable; says why.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("the body is not UTF-8") from None
    if _depth(text) > DEPTH_MAX:
        raise _malformed(f"the body is nested deeper than {DEPTH_MAX} levels")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole
        )
    except json.JSONDecodeError as error:
        raise _malformed(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    if "\\u" in text and not _storable(value):
        raise _malformed("the body has a NUL character or half of a surrogate pair in a text")
    return value


def _depth(text: str) -> int:
    """How deep brackets are nested outside of strings."""
    depth = deepest = 0
    in_string = escaped = False
    for c in text:
        if in_string:
            if escaped:
                escaped = False
            elif c == "\\":
                escaped = True
            elif c == '"':
                in_string = False
        elif c == '"':
            in_string = True
        elif c in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in "]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _malformed("an object in the body has the same name twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise _malformed(f"{name} is not JSON")


def _finite(digits: str) -> float:
    if not isfinite(value := float(digits)):
        raise _malformed("a number in the body is out of range")
    return value


def _whole(digits: str) -> int:
    if len(digits) > 310:
        raise _malformed("a number in the body is out of range")
    return int(digits)


def _storable(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, dict):
        return all(_storable(name) and _storable(item) for name, item in value.items())
    return not isinstance(value, list) or all(map(_storable, value))


def _malformed(detail: str) -> Problem:
    return Problem(
        "INT-400-INVALID-PAYLOAD", "The body is not valid; see errors.", errors=[FieldError(pointer="", detail=detail)]
    )


def _too_large(limit: int) -> Problem:
    # Whoever sends too much is not listened to further.
    return Problem("INT-413-TOO-LARGE", f"The body has more than {limit} bytes.", headers={"connection": "close"})
