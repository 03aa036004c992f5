"""Events as text: JSON lines or one JSON array, each checked as the poller will check it. Pure.

Payloads are kept as they are written, so that a number like 10.10 reaches the receiver as 10.10.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isinf
from typing import Any, NoReturn

from app.delivery_headers import check_event_headers
from app.errors import InvalidInput
from app.outbox import NewEvent
from app.subscription import EVENT_TYPE

#: Problems named in one message; of more, only the number is told.
PROBLEMS_SHOWN = 10

_TEXTS = ("request_id", "idempotency_key", "traceparent", "run_id", "ordering_key")
_KNOWN = ("event_type", "payload", "headers", "tenant_id", *_TEXTS)
_SPACE = " \t\r\n"


class _Problem(ValueError):
    """What is wrong with one event."""


def parse_events(text: str, *, source: str, tenant_id: str, payload_max_bytes: int) -> list[tuple[str, NewEvent]]:
    """Every event of a text, with its place (`line 3`, or `item 3` of an array).

    Args:
        text: JSON lines, or a JSON array when its first character is `[`. Empty lines are skipped.
        source: what the text is called in messages.
        tenant_id: of events that name none.
        payload_max_bytes: the limit above which the poller would set an event aside.

    Raises:
        InvalidInput: names the places and what is wrong there.
    """
    events: list[tuple[str, NewEvent]] = []
    problems: list[str] = []
    total = 0
    for place, raw in _pieces(text, source):
        total += 1
        try:
            events.append((place, _event(raw, tenant_id, payload_max_bytes)))
        except (_Problem, InvalidInput) as problem:
            problems.append(f"{place}: {problem}")
    if problems:
        shown = problems[:PROBLEMS_SHOWN]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise InvalidInput(
            f"{source}: {len(problems)} of {total} events refused, so none was published:\n  " + "\n  ".join(shown)
        )
    return events


def one_event(event_type: str, payload: str, *, payload_max_bytes: int, **given: str | None) -> NewEvent:
    """One event from the options of a command line; `payload` is JSON text.

    Raises:
        InvalidInput: names what is wrong.
    """
    fields = {"event_type": event_type} | {name: value for name, value in given.items() if value is not None}
    try:
        value, end = _decode(payload, _skip(payload, 0))
        if _skip(payload, end) < len(payload):
            raise _Problem("there is text after the JSON value")
        return _checked(fields | {"payload": value}, payload.strip(_SPACE), "default", payload_max_bytes)
    except _Problem as problem:
        raise InvalidInput(f"--data: {problem}; nothing was published") from None


def _pieces(text: str, source: str) -> Iterator[tuple[str, str]]:
    """Each event's place and text."""
    at = _skip(text, 0)
    if not text.startswith("[", at):
        # Not splitlines(): JSON strings may hold the other characters that it splits at.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip(_SPACE):
                yield f"line {number}", line
        return
    number, at = 1, _skip(text, at + 1)
    while not text.startswith("]", at):
        try:
            _, end = _decode(text, at)
        except _Problem as problem:
            raise InvalidInput(f"{source}: item {number}: {problem}; nothing was published") from None
        yield f"item {number}", text[at:end]
        at = _skip(text, end)
        if text.startswith(",", at):
            number, at = number + 1, _skip(text, at + 1)
        elif not text.startswith("]", at):
            raise InvalidInput(f"{source}: after item {number}: ',' or ']' is missing; nothing was published")
    if _skip(text, at + 1) < len(text):
        raise InvalidInput(f"{source}: there is text after the array; nothing was published")


def _event(raw: str, tenant_id: str, payload_max_bytes: int) -> NewEvent:
    """The event that one JSON object describes, its payload exactly as written."""
    fields: dict[str, Any] = {}
    payload = ""
    at = _skip(raw, 0)
    if not raw.startswith("{", at):
        raise _Problem('not a JSON object; write {"event_type": ..., "payload": ...} on one line')
    at = _skip(raw, at + 1)
    while not raw.startswith("}", at):
        name, at = _decode(raw, at)
        at = _skip(raw, at)
        if not isinstance(name, str) or not raw.startswith(":", at):
            raise _Problem(f"not JSON at character {at + 1}")
        start = _skip(raw, at + 1)
        if name in fields:
            raise _Problem(f"{name[:64]!r} is given twice")
        fields[name], at = _decode(raw, start)
        if name == "payload":
            payload = raw[start:at]
        at = _skip(raw, at)
        if raw.startswith(",", at):
            at = _skip(raw, at + 1)
            if raw.startswith("}", at):
                raise _Problem(f"not JSON at character {at + 1}: a comma before the '}}'")
        elif not raw.startswith("}", at):
            raise _Problem(f"not JSON at character {at + 1}: ',' or '}}' is missing; one event a line")
    if _skip(raw, at + 1) < len(raw):
        raise _Problem("there is text after the object; one event a line")
    return _checked(fields, payload, tenant_id, payload_max_bytes)


def _checked(fields: dict[str, Any], payload: str, tenant_id: str, payload_max_bytes: int) -> NewEvent:
    if unknown := sorted(set(fields) - set(_KNOWN)):
        raise _Problem(f"unknown field {unknown[0][:64]!r}; known are {', '.join(_KNOWN)}")
    for name in ("event_type", "payload"):
        if name not in fields:
            raise _Problem(f"{name} is missing")
    event_type = fields["event_type"]
    if not isinstance(event_type, str) or not EVENT_TYPE.fullmatch(event_type):
        raise _Problem("event_type must be 1 to 256 visible ASCII characters without '*'")
    for name in (*_TEXTS, "tenant_id"):
        value = fields.get(name)
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= 256):
            raise _Problem(f"{name} must be text of 1 to 256 characters")
    check_event_headers(fields.get("headers"))
    _refuse_unstorable(fields)
    # As Postgres writes jsonb, near enough: with a blank after each ',' and ':'.
    size = len(json.dumps(fields["payload"], ensure_ascii=False).encode())
    if size > payload_max_bytes:
        raise _Problem(f"payload has {size} bytes, more than HOMING_PAYLOAD_MAX_BYTES={payload_max_bytes} allows")
    return NewEvent(
        event_type,
        payload,
        tenant_id=fields.get("tenant_id") or tenant_id,
        headers=None if fields.get("headers") is None else json.dumps(fields["headers"]),
        **{name: fields.get(name) for name in _TEXTS},
    )


def _refuse_unstorable(value: Any) -> None:
    """Refuse what Postgres cannot store in text: the character NUL, and halves of surrogate pairs."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if "\0" in item or any("\ud800" <= c <= "\udfff" for c in item):
                raise _Problem("text with the character \\u0000 or half a surrogate pair cannot be stored")
        elif isinstance(item, dict):
            stack += (*item.keys(), *item.values())
        elif isinstance(item, list):
            stack += item


def _float(text: str) -> float:
    if isinf(value := float(text)):
        raise _Problem("a number is too large for what receivers can read (IEEE 754 double)")
    return value


def _constant(text: str) -> NoReturn:
    raise _Problem(f"{text} is not JSON")


_decoder = json.JSONDecoder(parse_float=_float, parse_constant=_constant)


def _decode(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at a place, and the place after it."""
    try:
        return _decoder.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _Problem(f"not JSON at character {error.pos + 1}: {error.msg}") from None
    except RecursionError:
        raise _Problem("nested too deeply") from None
    except _Problem:
        raise
    except ValueError:  # more digits than Python reads
        raise _Problem("a number is too long") from None


def _skip(text: str, at: int) -> int:
    """The next place that is not JSON white space."""
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
