"""`homing keys`: API keys, made, listed and revoked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from workers.cli.access import open_access, operator
from workers.cli.options import Json, Tenant
from workers.cli.output import give, say

app = typer.Typer(help="API keys: who may do what over HTTP.")

Operator = Annotated[
    bool, typer.Option("--operator", help="Of no tenant: manages tenants and their keys, reads no data.")
]


@app.command("create")
def create(
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="S",
            help="events:write, deliveries:read, endpoints:write, replay:write, audit:read or admin; may be repeated.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=3650, help="By default it does not end.")] = None,
    for_operator: Operator = False,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Make a key. It is printed once, and never again."""
    from app.api_keys import Scope, create_key

    ends = None if expires_in_days is None else datetime.now(UTC) + timedelta(days=expires_in_days)
    scopes = scope or ([Scope.ADMIN] if for_operator else [])
    with open_access() as access:
        made = access.transact(
            lambda connection: create_key(
                connection,
                tenant_id=None if for_operator else tenant,
                scopes=scopes,
                actor=operator(),
                name=name,
                expires_at=ends,
            )
        )
    give(made, as_json=as_json)
    say("the key is shown this once: send it as `Authorization: Bearer ...`")


@app.command("list")
def list_all(for_operator: Operator = False, tenant: Tenant = "default", as_json: Json = False) -> None:
    """List a tenant's keys, revoked and expired ones too, at most 1000."""
    from app.api_keys import list_keys

    whose = None if for_operator else tenant
    with open_access() as access:
        rows = access.transact(lambda connection: list_keys(connection, tenant_id=whose, limit=1000))
    columns = ("id", "name", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at")
    give(rows, as_json=as_json, columns=columns, none="no key yet: homing keys create --scope S")


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, the part after homing_live_.")],
    for_operator: Operator = False,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """End a key, at once and for good."""
    from app.api_keys import revoke_key

    whose = None if for_operator else tenant
    with open_access() as access:
        ended = access.transact(
            lambda connection: revoke_key(connection, tenant_id=whose, key_id=key_id, actor=operator())
        )
    give(ended, as_json=as_json)
