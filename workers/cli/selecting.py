"""The options that say which dead letters are meant; the same for every command that selects."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from workers.cli.options import parse_since

if TYPE_CHECKING:
    from app.selection import Selector

_PANEL = "Which"


def _option(*names: str, metavar: str = "ID", **settings: Any) -> Any:
    return typer.Option(*names, metavar=metavar, rich_help_panel=_PANEL, **settings)


RequestId = Annotated[str | None, _option("--request-id", help="With this request id.")]
Event = Annotated[UUID | None, _option("--event", help="Of this event.")]
Delivery = Annotated[UUID | None, _option("--delivery", help="Of this delivery.")]
Job = Annotated[str | None, _option("--job", help="Of this job; another name of --run.")]
Run = Annotated[str | None, _option("--run", help="Of this run.")]
Endpoint = Annotated[UUID | None, _option("--endpoint", help="Of this endpoint.")]
EventType = Annotated[str | None, _option("--type", "--event-type", metavar="T", help="Of this type, or 'prefix.*'.")]
FailureClass = Annotated[str | None, _option("--class", metavar="C", help="Such as http_status or timeout.")]
Status = Annotated[int | None, _option("--status", metavar="N", help="With this last HTTP status.")]
Source = Annotated[str | None, _option("--source", metavar="S", help="From this source: the type's first segment.")]
LookBack = Annotated[int | None, _option("--look-back-minutes", metavar="N", help="Filed within these minutes.")]
After = Annotated[
    datetime | None, _option("--after", parser=parse_since, metavar="WHEN", help="Filed then or later; ISO 8601 or 2h.")
]
Before = Annotated[
    datetime | None, _option("--before", parser=parse_since, metavar="WHEN", help="Filed before; ISO 8601 or 2h.")
]


def selector_of(**conditions: Any) -> Selector | None:
    """The selector that the options make; None when none was given.

    Raises:
        InvalidInput: a condition is malformed.
    """
    from app.errors import InvalidInput
    from app.selection import make_selector

    run, job = conditions.pop("run", None), conditions.pop("job", None)
    if run is not None and job is not None and run != job:
        raise InvalidInput("--job and --run are two names of one thing; give one of them")
    given = conditions | {"run_id": run if run is not None else job}
    return make_selector(**given) if any(value is not None for value in given.values()) else None
