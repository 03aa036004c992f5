"""`homing deliveries`: list and show them, and send one again."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from workers.cli.access import open_access, operator
from workers.cli.options import Json, Limit, Tenant
from workers.cli.output import give, say

app = typer.Typer(help="Deliveries: one event for one endpoint.")


@app.command("list")
def list_matching(
    state: Annotated[str | None, typer.Option(help="Such as pending, retry_scheduled or dead_lettered.")] = None,
    endpoint: Annotated[UUID | None, typer.Option(metavar="ID", help="Of this endpoint.")] = None,
    request_id: Annotated[str | None, typer.Option(metavar="ID", help="With this request id.")] = None,
    event_type: Annotated[str | None, typer.Option(metavar="T", help="Of this type.")] = None,
    tenant: Tenant = "default",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List the deliveries that match every given filter, newest first."""
    from app.reads import list_deliveries

    with open_access() as access:
        rows = access.transact(
            lambda connection: list_deliveries(
                connection,
                tenant_id=tenant,
                state=state,
                endpoint_id=endpoint,
                request_id=request_id,
                event_type=event_type,
                limit=limit,
            )
        )
    columns = ("delivery_id", "request_id", "event_type", "state", "attempts", "last_status", "last_class")
    give(rows, as_json=as_json, columns=(*columns, "next_attempt_at"), none="no delivery matches")


@app.command("show")
def show(
    delivery_id: Annotated[UUID, typer.Argument(metavar="ID", help="The delivery.")],
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Show a delivery with its attempts."""
    from app.reads import show_delivery

    with open_access() as access:
        found = access.transact(lambda connection: show_delivery(connection, tenant_id=tenant, delivery_id=delivery_id))
    give(found, as_json=as_json)


@app.command("retry")
def retry(
    delivery_id: Annotated[UUID, typer.Argument(metavar="ID", help="The delivery: failed or dead-lettered.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit trail.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent again, and do nothing.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="K", help="The same key and request is carried out once.")
    ] = None,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Send one delivery again: the same body and webhook-id, attempts from 1; a poller and a worker carry it out."""
    from dataclasses import asdict

    from app.replays import request_replay

    with open_access() as access:
        answer = access.transact(
            lambda connection: request_replay(
                connection,
                tenant_id=tenant,
                delivery_id=delivery_id,
                reason=reason,
                actor=operator(),
                idempotency_key=idempotency_key,
                dry_run=dry_run,
            )
        )
    give(asdict(answer) | {"dry_run": dry_run}, as_json=as_json)
    if dry_run:
        say("dry run: nothing was done")
    elif answer.repeated:
        say("this key was used for the same replay before: nothing was done again")
    else:
        say(f"it will be sent again; watch: homing deliveries show {delivery_id}")
