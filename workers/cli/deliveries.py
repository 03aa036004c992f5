"""`homing deliveries`: list and show them."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from workers.cli.access import open_access
from workers.cli.options import Json, Limit, Tenant
from workers.cli.output import give

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
