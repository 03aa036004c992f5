"""`homing tenants`: make and list them."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli.access import open_access
from workers.cli.options import Json
from workers.cli.output import give

app = typer.Typer(help="Tenants: whose data it is.")


@app.command("create")
def create(
    tenant_id: Annotated[str, typer.Argument(metavar="ID", help="1 to 64 of A-Z a-z 0-9 _ . : -")],
    name: Annotated[str, typer.Option(help="For people.")] = "",
    as_json: Json = False,
) -> None:
    """Make a tenant."""
    from app.tenants import create_tenant

    with open_access() as access:
        made = access.transact(lambda connection: create_tenant(connection, tenant_id, name=name))
    give(made, as_json=as_json)


@app.command("list")
def list_all(as_json: Json = False) -> None:
    """List tenants by id, at most 1000."""
    from app.tenants import list_tenants

    with open_access() as access:
        rows = access.transact(list_tenants)
    give(rows, as_json=as_json, none="no tenant yet: homing tenants create ID")
