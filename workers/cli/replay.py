"""`homing replay`: send what failed again."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli.again import send_again
from workers.cli.options import DryRun, IdempotencyKey, Json, Reason, Tenant
from workers.cli.output import say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("replay", rich_help_panel="Look and act")(replay)


def replay(
    request_id: Annotated[str, typer.Option(metavar="ID", help="Whose deliveries to send again.")],
    reason: Reason,
    dry_run: DryRun = False,
    idempotency_key: IdempotencyKey = None,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Send every failed or dead-lettered delivery of a request id again; a poller and a worker carry it out."""
    answer = send_again(
        request_id=request_id,
        reason=reason,
        idempotency_key=idempotency_key,
        dry_run=dry_run,
        tenant=tenant,
        as_json=as_json,
    )
    count = len(answer.deliveries)
    if dry_run:
        say(f"dry run: nothing was done; without --dry-run, {count} would be sent again")
    elif not answer.repeated:
        say(f"{count} will be sent again; watch: homing deliveries list --request-id {request_id}")
