"""`homing dead-letters`: list, group and show them; `replay` and `drill` have modules of their own."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import typer

from workers.cli.access import open_access
from workers.cli.bulk_replay import replay
from workers.cli.drill import drill
from workers.cli.options import Json, Limit, Tenant, parse_since
from workers.cli.output import give
from workers.cli.selecting import (
    After,
    Before,
    Delivery,
    Endpoint,
    Event,
    EventType,
    FailureClass,
    Job,
    LookBack,
    RequestId,
    Run,
    Source,
    Status,
    selector_of,
)

app = typer.Typer(help="Dead letters: automatic attempts are over, evidence kept.")
app.command("replay")(replay)
app.command("drill")(drill)


@app.command("list")
def list_matching(
    status: Annotated[Literal["open", "replayed", "resolved"] | None, typer.Option(help="Where it stands.")] = None,
    endpoint: Annotated[UUID | None, typer.Option(metavar="ID", help="Of this endpoint.")] = None,
    request_id: Annotated[str | None, typer.Option(metavar="ID", help="With this request id.")] = None,
    event_type: Annotated[str | None, typer.Option(metavar="T", help="Of this type.")] = None,
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

    with open_access() as access:
        rows = access.transact(
            lambda connection: list_dead_letters(
                connection,
                tenant_id=tenant,
                status=status,
                endpoint_id=endpoint,
                request_id=request_id,
                event_type=event_type,
                failure_class=failure_class,
                since=since,
                limit=limit,
            )
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

    with open_access() as access:
        found = access.transact(
            lambda connection: show_dead_letter(connection, tenant_id=tenant, dead_letter_id=dead_letter_id)
        )
    give(found, as_json=as_json)


@app.command("groups")
def groups(
    request_id: RequestId = None,
    event: Event = None,
    delivery: Delivery = None,
    job: Job = None,
    run: Run = None,
    endpoint: Endpoint = None,
    event_type: EventType = None,
    failure_class: FailureClass = None,
    status: Status = None,
    source: Source = None,
    look_back_minutes: LookBack = None,
    after: After = None,
    before: Before = None,
    tenant: Tenant = "default",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """Group the open dead letters by cause: endpoint, class and status, or the error without its numbers."""
    from dataclasses import asdict

    from app.dead_letter_groups import groups as grouped

    selector = selector_of(
        request_id=request_id,
        event_id=event,
        delivery_id=delivery,
        job=job,
        run=run,
        endpoint_id=endpoint,
        event_type=event_type,
        failure_class=failure_class,
        http_status=status,
        source=source,
        look_back_minutes=look_back_minutes,
        after=after,
        before=before,
    )
    with open_access() as access:
        rows = access.transact(lambda connection: grouped(connection, tenant, selector, limit))
    columns = ("count", "endpoint_id", "failure_class", "http_status", "detail", "first_seen", "last_seen")
    give([asdict(row) for row in rows], as_json=as_json, columns=columns, none="no open dead letter matches")
