"""`homing deliveries`: list and show them, and send one again."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from workers.cli.access import in_transaction
from workers.cli.again import send_again
from workers.cli.options import DryRun, IdempotencyKey, Json, Limit, OfEndpoint, OfRequest, OfType, Reason, Tenant
from workers.cli.output import give, say

app = typer.Typer(help="Deliveries: one event for one endpoint.")


@app.command("list")
def list_matching(
    state: Annotated[str | None, typer.Option(help="Such as pending, retry_scheduled or dead_lettered.")] = None,
    endpoint: OfEndpoint = None,
    request_id: OfRequest = None,
    event_type: OfType = None,
    tenant: Tenant = "default",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List the deliveries that match every given filter, newest first."""
    from app.reads import list_deliveries

    rows = in_transaction(
        list_deliveries,
        tenant_id=tenant,
        state=state,
        endpoint_id=endpoint,
        request_id=request_id,
        event_type=event_type,
        limit=limit,
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

    give(in_transaction(show_delivery, tenant_id=tenant, delivery_id=delivery_id), as_json=as_json)


@app.command("retry")
def retry(
    delivery_id: Annotated[UUID, typer.Argument(metavar="ID", help="The delivery: failed or dead-lettered.")],
    reason: Reason,
    dry_run: DryRun = False,
    idempotency_key: IdempotencyKey = None,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Send one delivery again: the same body and webhook-id, attempts from 1; a poller and a worker carry it out."""
    answer = send_again(
        delivery_id=delivery_id,
        reason=reason,
        idempotency_key=idempotency_key,
        dry_run=dry_run,
        tenant=tenant,
        as_json=as_json,
    )
    if dry_run:
        say("dry run: nothing was done")
    elif not answer.repeated:
        say(f"it will be sent again; watch: homing deliveries show {delivery_id}")
