"""`homing replays`: list, show and cancel what people have asked to send again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal
from uuid import UUID

import typer

from workers.cli.access import in_transaction, open_access, operator
from workers.cli.options import Json, Reason, Tenant
from workers.cli.output import give

app = typer.Typer(help="Replays: what people have asked to send again.")

ReplayId = Annotated[UUID, typer.Argument(metavar="ID", help="The replay.")]


@app.command("list")
def list_matching(
    state: Annotated[
        Literal["requested", "running", "done", "cancelled"] | None, typer.Option(help="Where it stands.")
    ] = None,
    before: Annotated[UUID | None, typer.Option(metavar="ID", help="Older than this replay.")] = None,
    tenant: Tenant = "default",
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="Rows, at most.")] = 50,
    as_json: Json = False,
) -> None:
    """List replays, newest first, with what their deliveries came to."""
    from app.bulk_replay import list_replays

    rows = in_transaction(list_replays, tenant_id=tenant, limit=limit, before=before, state=state)
    columns = (
        "replay_id",
        "state",
        "items",
        "waiting",
        "under_way",
        "retrying",
        "resolved",
        "failed",
        "reason",
        "actor",
    )
    give([asdict(row) for row in rows], as_json=as_json, columns=columns, none="no replay matches")


@app.command("show")
def show(
    replay_id: ReplayId,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it stands still.")] = False,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Show how a replay stands; with --wait, follow it (exit code 6 when some of it was not delivered)."""
    from app.bulk_replay import replay_progress
    from workers.cli.following import follow, tell_end

    code = 0
    with open_access() as access:
        if wait:
            progress = follow(access, tenant, replay_id)
            code = tell_end(progress)
        else:
            progress = access.transact(lambda connection: replay_progress(connection, tenant, replay_id))
    give(asdict(progress), as_json=as_json)
    if code:
        raise typer.Exit(code)


@app.command("cancel")
def cancel(
    replay_id: ReplayId,
    reason: Reason,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Stop a replay: what waits is left as it was; what was sent again already goes on."""
    from app.bulk_replay import cancel_replay

    progress = in_transaction(cancel_replay, tenant_id=tenant, replay_id=replay_id, actor=operator(), reason=reason)
    give(asdict(progress), as_json=as_json)
