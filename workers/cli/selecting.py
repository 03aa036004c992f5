"""The options that say which dead letters are meant; the same for every command that selects."""

from __future__ import annotations

import inspect
from collections.abc import Callable
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


#: Each option: its name as a parameter, which is also its field of the selector, and what it takes.
_OPTIONS: dict[str, Any] = {
    "request_id": Annotated[str | None, _option("--request-id", help="With this request id.")],
    "event_id": Annotated[UUID | None, _option("--event", help="Of this event.")],
    "delivery_id": Annotated[UUID | None, _option("--delivery", help="Of this delivery.")],
    "job": Annotated[str | None, _option("--job", help="Of this job; another name of --run.")],
    "run": Annotated[str | None, _option("--run", help="Of this run.")],
    "endpoint_id": Annotated[UUID | None, _option("--endpoint", help="Of this endpoint.")],
    "event_type": Annotated[
        str | None, _option("--type", "--event-type", metavar="T", help="Of this type, or 'prefix.*'.")
    ],
    "failure_class": Annotated[str | None, _option("--class", metavar="C", help="Such as http_status or timeout.")],
    "http_status": Annotated[int | None, _option("--status", metavar="N", help="With this last HTTP status.")],
    "source": Annotated[
        str | None, _option("--source", metavar="S", help="From this source: the type's first segment.")
    ],
    "look_back_minutes": Annotated[
        int | None, _option("--look-back-minutes", metavar="N", help="Filed within these minutes.")
    ],
    "after": Annotated[
        datetime | None,
        _option("--after", parser=parse_since, metavar="WHEN", help="Filed then or later; ISO 8601 or 2h."),
    ],
    "before": Annotated[
        datetime | None, _option("--before", parser=parse_since, metavar="WHEN", help="Filed before; ISO 8601 or 2h.")
    ],
}


def selects(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that select dead letters, before its own; it gets what they make as `selector`."""
    # Its type is imported for type checkers only, and is no option's.
    command.__annotations__.pop("selector")
    signature = inspect.signature(command, eval_str=True)
    given = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name != "selector"
    ]

    def with_options(**arguments: Any) -> None:
        conditions = {name: arguments.pop(name) for name in _OPTIONS}
        command(selector=selector_of(**conditions), **arguments)

    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    with_options.__signature__ = signature.replace(parameters=[*given, *own])  # type: ignore[attr-defined]
    with_options.__annotations__ = {}
    return with_options


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
