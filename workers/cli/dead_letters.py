"""`homing dead-letters`: list, group and show them; `replay` and `drill` have modules of their own."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal
from uuid import UUID

import typer

from workers.cli.access import in_transaction
from workers.cli.bulk_replay import replay
from workers.cli.drill import drill
from workers.cli.options import Json, Limit, OfEndpoint, OfRequest, OfType, Tenant, parse_since
from workers.cli.output import give
from workers.cli.selecting import selects

if TYPE_CHECKING:
    from app.selection import Selector

app = typer.Typer(help="Dead letters: automatic attempts are over, evidence kept.")
app.command("replay")(replay)
app.command("drill")(drill)


@app.command("list")
def list_matching(
    status: Annotated[Literal["open", "replayed", "resolved"] | None, typer.Option(help="Where it stands.")] = None,
    endpoint: OfEndpoint = None,
    request_id: OfRequest = None,
    event_type: OfType = None,
    failure_class: Annotated[
        str | None, typer.Option("--class", metavar="C", help="Such as http_status or timeout.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(parser=parse_since, metavar="WHEN", help="ISO 8601, or an age such as 2h.")
    ] = None,
    tenant: Tenant = "default",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List the dead letters that match every given filter, newest first."""
    from app.reads import list_dead_letters

    rows = in_transaction(
        list_dead_letters,
        tenant_id=tenant,
        status=status,
        endpoint_id=endpoint,
        request_id=request_id,
        event_type=event_type,
        failure_class=failure_class,
        since=since,
        limit=limit,
    )
    columns = (
        "id",
        "request_id",
        "event_type",
        "failure_class",
        "last_http_status",
        "attempts",
        "status",
        "created_at",
    )
    give(rows, as_json=as_json, columns=columns, none="no dead letter matches")


@app.command("show")
def show(
    dead_letter_id: Annotated[UUID, typer.Argument(metavar="ID", help="The dead letter.")],
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Show a dead letter with its snapshots of payload and response."""
    from app.reads import show_dead_letter

    give(in_transaction(show_dead_letter, tenant_id=tenant, dead_letter_id=dead_letter_id), as_json=as_json)


@app.command("groups")
@selects
def groups(
    selector: Selector | None,
    tenant: Tenant = "default",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """Group the open dead letters by cause: endpoint, class and status, or the error without its numbers."""
    from dataclasses import asdict

    from app.dead_letter_groups import groups as grouped

    rows = in_transaction(grouped, tenant_id=tenant, selector=selector, limit=limit)
    columns = ("count", "endpoint_id", "failure_class", "http_status", "detail", "first_seen", "last_seen")
    give([asdict(row) for row in rows], as_json=as_json, columns=columns, none="no open dead letter matches")
