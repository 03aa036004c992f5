"""`homing audit`: who did what, and whether the trail is whole."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from workers.cli.access import in_transaction, open_access
from workers.cli.options import Json, Limit, Tenant
from workers.cli.output import give, say

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from app.audit import Head, Verification

app = typer.Typer(help="The audit trail: what people and Homing did.")


@app.command("list")
def list_matching(
    request_id: Annotated[str | None, typer.Option(metavar="ID", help="About this request id.")] = None,
    before: Annotated[UUID | None, typer.Option(metavar="ID", help="Older than this row.")] = None,
    tenant: Tenant = "default",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List audit rows, newest first."""
    from app.audit import list_audit

    rows = in_transaction(list_audit, tenant_id=tenant, request_id=request_id, limit=limit, before=before)
    columns = ("created_at", "seq", "action", "subject", "before", "after", "actor", "reason", "request_id")
    give(rows, as_json=as_json, columns=columns, none="no audit row matches")


@app.command("verify")
def verify(
    head: Annotated[
        str | None,
        typer.Option(
            metavar="SEQ:HASH", help="A head from the poller's log (audit.head): the chain must go through it."
        ),
    ] = None,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Compute the whole chain anew; exit 1 when a row was edited, moved or removed, or the end was cut off."""
    from app.audit import verify_audit

    kept = _head(head, tenant)

    async def walk(engine: AsyncEngine) -> Verification:
        async with engine.connect() as connection:
            # One snapshot: what the poller chains meanwhile is not seen.
            await connection.execution_options(isolation_level="REPEATABLE READ")
            return await verify_audit(connection, tenant, kept=kept)

    with open_access() as access:
        found = access.with_engine(walk)
    give(asdict(found) | {"ok": found.ok}, as_json=as_json)
    if not found.ok:
        say(f"the audit trail of tenant {tenant} is not whole: {found.broken} problems")
        raise typer.Exit(1)
    say(f"{found.rows} rows, each as it was chained; {found.unchained} wait for the poller to chain them")


def _head(text: str | None, tenant: str) -> Head | None:
    from app.audit import Head

    if text is None:
        return None
    seq, _, digest = text.partition(":")
    if not seq.isdigit() or len(digest) != 64:
        raise typer.BadParameter("write it as SEQ:HASH, with 64 hexadecimal digits", param_hint="--head")
    return Head(tenant, int(seq), digest.lower())
