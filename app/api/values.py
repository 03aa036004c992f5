"""Types of values in requests and answers that several resources share."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# RFC 3339 section 5.6.
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


class Body(BaseModel):
    """What a request carries: nothing that is not known is taken."""

    model_config = ConfigDict(extra="forbid")


class Shown(BaseModel):
    """What an answer carries: made of stored rows, which must be what they should be."""

    model_config = ConfigDict(extra="ignore", from_attributes=True)


def _canonical(value: Any) -> Any:
    if isinstance(value, str) and not _UUID.fullmatch(value):
        raise ValueError("must be a UUID, written as 8-4-4-4-12 hexadecimal digits")
    return value


def _rfc3339(value: Any) -> Any:
    # In a query string, "+" reads as a space.
    if isinstance(value, str) and re.search(r" [0-9]{2}:[0-9]{2}$", value):
        value = "+".join(value.rsplit(" ", 1))
    if not isinstance(value, datetime) and not (isinstance(value, str) and _MOMENT.fullmatch(value)):
        raise ValueError("must be a time with its offset, such as 2026-11-22T10:00:00Z (RFC 3339)")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a time within the years 1 to 9999") from None


def _shown(value: datetime) -> str:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _whole(value: Any) -> Any:
    # In JSON, 5 and 5.0 are the same number.
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: Comes last in the annotation of a whole number in a body.
Whole = BeforeValidator(_whole)
Id = Annotated[UUID, BeforeValidator(_canonical)]
#: A moment in a request.
When = Annotated[
    datetime,
    BeforeValidator(_rfc3339),
    AfterValidator(_in_utc),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
#: A moment in an answer, always in UTC.
Moment = Annotated[
    datetime, PlainSerializer(_shown, return_type=str), WithJsonSchema({"type": "string", "format": "date-time"})
]

#: Request ids, types and their like, in requests.
Word = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]+$")]
# Spelled out: regular expressions of different languages mean different things by \s.
_BLANK = r"\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
#: Why somebody does something.
Reason = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1000,
        pattern=rf"^[^\x00]*[^{_BLANK}][^\x00]*$",
        description="Why; kept in the audit trail.",
        examples=["receiver was down, mended now"],
    ),
]
Name = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$", description="For people.")]
EndpointId = Annotated[Id, Path(description="The endpoint's id.")]
