"""`homing replay`: send what failed again."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli.access import open_access, operator
from workers.cli.options import Json, Tenant
from workers.cli.output import give, say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("replay", rich_help_panel="Look and act")(replay)


def replay(
    request_id: Annotated[str, typer.Option(metavar="ID", help="Whose deliveries to send again.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit trail.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent again, and do nothing.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="K", help="The same key and request is carried out once.")
    ] = None,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Send every failed or dead-lettered delivery of a request id again; a poller and a worker carry it out."""
    from dataclasses import asdict

    from app.replays import request_replay

    with open_access() as access:
        answer = access.transact(
            lambda connection: request_replay(
                connection,
                tenant_id=tenant,
                request_id=request_id,
                reason=reason,
                actor=operator(),
                idempotency_key=idempotency_key,
                dry_run=dry_run,
            )
        )
    give(asdict(answer) | {"dry_run": dry_run}, as_json=as_json)
    count = len(answer.deliveries)
    if dry_run:
        say(f"dry run: nothing was done; without --dry-run, {count} would be sent again")
    elif answer.repeated:
        say("this key was used for the same replay before: nothing was done again")
    else:
        say(f"{count} will be sent again; watch: homing deliveries list --request-id {request_id}")
