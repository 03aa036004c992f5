"""`homing events`: publish them, find them, and put back those that were set aside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from workers.cli.access import Access, open_access, read_settings
from workers.cli.options import Json, Limit, Tenant
from workers.cli.output import give, say

if TYPE_CHECKING:
    from app.config import Settings
    from app.outbox import NewEvent

app = typer.Typer(help="Events: what happened.")

#: Events written by one statement.
BATCH = 1000


@app.command("publish")
def publish(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE|-", help="JSON lines or a JSON array; `-` is stdin.")
    ] = None,
    event_type: Annotated[
        str | None, typer.Option("--type", metavar="T", help="Publish one event of this type.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="JSON", help="The payload of that event.")] = None,
    request_id: Annotated[str | None, typer.Option(metavar="ID", help="The request id of that event.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(metavar="K", help="The idempotency key of that event.")] = None,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Publish events from a file or stdin, or one from the options; all of them or none."""
    if (file is None) == (event_type is None):
        raise typer.BadParameter("give either a FILE (or -), or --type and --data")
    if file is not None and not (data is None and request_id is None and idempotency_key is None):
        raise typer.BadParameter("--data, --request-id and --idempotency-key go with --type, not with a FILE")
    if event_type is not None and data is None:
        raise typer.BadParameter("--type needs --data: the payload as JSON")
    from workers.cli.event_lines import one_event

    settings = read_settings()  # here too: a bad file shall not start servers
    if file is not None:
        events = _read(file, tenant, settings)
    else:
        event = one_event(
            event_type or "",
            data or "",
            payload_max_bytes=settings.payload_max_bytes,
            tenant_id=tenant,
            request_id=request_id,
            idempotency_key=idempotency_key,
        )
        events = [("--tenant", event)]
    published = []
    if events:
        with open_access() as access:
            published = _write(access, events)
    result = {"published": len(published), "events": published}
    if as_json or len(published) == 1:
        give(result if as_json else published[0], as_json=as_json)
    else:
        give({"published": len(published)}, as_json=False)


@app.command("show")
def show(
    reference: Annotated[str, typer.Argument(metavar="ID", help="A request id, or the id of an event.")],
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Show where events are, and how their deliveries stand."""
    from app.event_history import show_events

    with open_access() as access:
        found = access.transact(lambda connection: show_events(connection, tenant_id=tenant, reference=reference))
    if as_json:
        give(found, as_json=True)
        return
    for number, event in enumerate(found):
        if number:
            print()
        give({k: v for k, v in event.items() if v is not None}, as_json=False)


@app.command("rejected")
def rejected(limit: Limit = 50, as_json: Json = False) -> None:
    """List outbox rows that were set aside, of every tenant, newest first."""
    from app.reads import list_rejected

    with open_access() as access:
        rows = access.transact(lambda connection: list_rejected(connection, limit=limit))
    columns = ("id", "tenant_id", "event_type", "request_id", "reason")
    give(rows, as_json=as_json, columns=columns, none="no row is set aside")


@app.command("resubmit")
def resubmit(
    ids: Annotated[list[UUID] | None, typer.Argument(metavar="ID", help="Rows to put back.")] = None,
    all_rows: Annotated[bool, typer.Option("--all", help="Put every row back.")] = False,
    as_json: Json = False,
) -> None:
    """Put rows that were set aside back into the outbox, under the ids that they had; all of those named, or none."""
    from app.set_aside import resubmit as put_back
    from app.set_aside import resubmit_all

    if bool(ids) == all_rows:
        raise typer.BadParameter("give the ids of rows, or --all")
    with open_access() as access:
        moved = access.transact(resubmit_all if all_rows else lambda connection: put_back(connection, ids or []))
    give({"resubmitted": len(moved), "ids": moved}, as_json=as_json)


def _read(file: str, tenant: str, settings: Settings) -> list[tuple[str, NewEvent]]:
    from app.errors import InvalidInput
    from workers.cli.event_lines import parse_events

    source = "stdin" if file == "-" else file
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror}; nothing was published") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{source}: byte {error.start + 1} is not UTF-8; nothing was published") from error
    limit = settings.payload_max_bytes
    events = parse_events(text, source=source, tenant_id=tenant, payload_max_bytes=limit)
    if not events:
        say(f"{source} holds no event")
    return events


def _write(access: Access, events: list[tuple[str, NewEvent]]) -> list[dict[str, Any]]:
    """Write all events in one transaction, with a progress bar where a person looks."""
    from rich.console import Console
    from rich.progress import Progress
    from sqlalchemy.ext.asyncio import AsyncConnection

    from app.errors import NotFound
    from app.outbox import add_events
    from app.tenants import unknown_tenants

    progress = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())

    async def write(connection: AsyncConnection) -> list[dict[str, Any]]:
        if unknown := await unknown_tenants(connection, {event.tenant_id for _, event in events}):
            place, event = next((p, e) for p, e in events if e.tenant_id in unknown)
            raise NotFound(
                f"{place}: tenant {event.tenant_id!r} does not exist; make it with `homing tenants create`; "
                "nothing was published"
            )
        written: list[tuple[UUID, str]] = []
        task = progress.add_task("publishing", total=len(events))
        for start in range(0, len(events), BATCH):
            batch = [event for _, event in events[start : start + BATCH]]
            written += await connection.run_sync(add_events, batch)
            progress.update(task, advance=len(batch))
        return [
            {"id": event_id, "request_id": request_id, "event_type": event.event_type}
            for (event_id, request_id), (_, event) in zip(written, events, strict=True)
        ]

    with progress:
        return access.transact(write)
