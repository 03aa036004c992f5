"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Tenant = Annotated[str, typer.Option("--tenant", metavar="ID", help="Whose data.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="Rows, at most.")]

Reason = Annotated[str, typer.Option(help="Why; kept in the audit trail.")]
IdempotencyKey = Annotated[
    str | None, typer.Option("--idempotency-key", metavar="K", help="The same key and request is carried out once.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be sent again, and do nothing.")]
#: Filters of listings.
OfEndpoint = Annotated[UUID | None, typer.Option("--endpoint", metavar="ID", help="Of this endpoint.")]
OfRequest = Annotated[str | None, typer.Option("--request-id", metavar="ID", help="With this request id.")]
OfType = Annotated[str | None, typer.Option("--event-type", metavar="T", help="Of this type.")]

_AGO = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_since(text: str) -> datetime:
    """A moment: ISO 8601 (UTC unless it says otherwise), or an age such as `30m`, `2h` or `7d`, by this machine's clock.

    Raises:
        typer.BadParameter: it is neither.
    """
    if match := _AGO.fullmatch(text.strip()):
        return datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither ISO 8601 nor an age such as 30m, 2h or 7d") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
