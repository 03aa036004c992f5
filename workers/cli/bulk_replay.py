"""`homing dead-letters replay`: shows what a selector matches; with --execute, sends it again, past the guard."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.cli.access import Access, open_access, operator
from workers.cli.options import IdempotencyKey, Json, Tenant
from workers.cli.output import give, say
from workers.cli.selecting import selects

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from app.bulk_replay import BulkReplay
    from app.selection import Preview, Selector

#: Above this many, a person on a terminal types the number instead of "y".
TYPED_ABOVE = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """How a replay is held back, and which switches its operator has given."""

    concurrency: int = 10
    allow_high: bool = False
    confirmed_large: bool = False
    threshold: int = 50
    rate_per_s: float = 100.0
    max_items: int = 10_000
    max_scan: int = 100_000


@selects
def replay(
    selector: Selector | None,
    execute: Annotated[bool, typer.Option("--execute", help="Do it; without this, only show what matches.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why; needed with --execute, kept in the audit trail.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is no terminal.")] = False,
    concurrency: Annotated[int, typer.Option(metavar="N", help="Items under way at once, 1 to 10.")] = 10,
    allow_high_concurrency: Annotated[
        bool, typer.Option("--allow-high-concurrency", help="Allow a concurrency of up to 20.")
    ] = False,
    confirm_large: Annotated[
        bool, typer.Option("--confirm-large", help="Confirm a large match at a concurrency above 10.")
    ] = False,
    confirm_threshold: Annotated[
        int | None,
        typer.Option(metavar="N", help="Matches that are large; HOMING_REPLAY_CONFIRM_THRESHOLD, or 50."),
    ] = None,
    max_scan: Annotated[int, typer.Option(metavar="N", help="Open dead letters to look at, oldest first.")] = 100_000,
    max_items: Annotated[int, typer.Option("--max", metavar="N", help="Replay at most so many, the oldest.")] = 10_000,
    rate: Annotated[float, typer.Option(metavar="N", help="Items sent again per second, at most.")] = 100.0,
    expected_count: Annotated[
        int | None, typer.Option(metavar="N", help="Refuse if more than a tenth above this match.")
    ] = None,
    delete_after: Annotated[
        bool, typer.Option("--delete-after", help="Remove each record once its delivery has succeeded.")
    ] = False,
    idempotency_key: IdempotencyKey = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it until it stands still.")] = True,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Show which open dead letters match; with --execute, send them again. A poller and a worker carry it out.

    Exit code 0: done, and everything delivered. 5: refused. 6: some of it was not delivered.
    """
    from app.errors import InvalidInput

    if selector is None:
        raise InvalidInput(
            "say which: give at least one of the options under `Which` (--endpoint, --type, --after ...)"
        )
    if execute and not (reason or "").strip():
        raise InvalidInput("--reason: a replay needs one; say why it is sent again")
    with open_access() as access:
        limits = Limits(
            concurrency=concurrency,
            allow_high=allow_high_concurrency,
            confirmed_large=confirm_large,
            threshold=access.settings.replay_confirm_threshold if confirm_threshold is None else confirm_threshold,
            rate_per_s=rate,
            max_items=max_items,
            max_scan=max_scan,
        )
        seen = access.transact(lambda connection: look(connection, tenant, selector, limits))
        shown = _shown(seen, selector, limits)
        if not execute:
            give(shown | {"dry_run": True}, as_json=as_json)
            _tell_dry_run(seen, limits)
            return
        check(seen.count, limits)
        if seen.count and not yes:
            _confirm(min(seen.count, limits.max_items))
        asked = access.transact(
            lambda connection: ask(
                connection,
                tenant,
                selector,
                limits,
                reason=reason or "",
                idempotency_key=idempotency_key,
                expected_count=seen.count if expected_count is None else expected_count,
                delete_after=delete_after,
            )
        )
        _tell_asked(asked)
        result: dict[str, Any] = shown | asdict(asked) | {"dry_run": False}
        code = 0
        if wait:
            result["progress"], code = _followed(access, tenant, asked)
        give(result, as_json=as_json)
    if code:
        raise typer.Exit(code)


async def look(connection: AsyncConnection, tenant_id: str, selector: Selector, limits: Limits) -> Preview:
    """The preview under these limits."""
    from app.replay_guard import check_concurrency
    from app.selection import preview

    check_concurrency(limits.concurrency, allow_high=limits.allow_high)
    if limits.rate_per_s <= 0:
        from app.errors import InvalidInput

        raise InvalidInput(f"rate: {limits.rate_per_s:g} is not above 0")
    return await preview(
        connection,
        tenant_id,
        selector,
        max_scan=limits.max_scan,
        rate_per_s=limits.rate_per_s,
        concurrency=limits.concurrency,
    )


def check(matched: int, limits: Limits) -> None:
    """The guard; raises Conflict (exit code 5) or InvalidInput."""
    from app.replay_guard import check_replay

    check_replay(
        concurrency=limits.concurrency,
        matched=matched,
        allow_high=limits.allow_high,
        confirmed_large=limits.confirmed_large,
        threshold=limits.threshold,
    )


async def ask(
    connection: AsyncConnection,
    tenant_id: str,
    selector: Selector,
    limits: Limits,
    *,
    reason: str,
    idempotency_key: str | None = None,
    expected_count: int | None = None,
    delete_after: bool = False,
) -> BulkReplay:
    """Past the guard once more, on the count of this transaction, and written down."""
    from app.bulk_replay import request_bulk_replay

    asked = await request_bulk_replay(
        connection,
        tenant_id=tenant_id,
        selector=selector,
        reason=reason,
        actor=operator(),
        idempotency_key=idempotency_key,
        expected_count=expected_count,
        rate_per_s=limits.rate_per_s,
        max_items=limits.max_items,
        delete_after=delete_after,
        concurrency=limits.concurrency,
        max_scan=limits.max_scan,
    )
    check(asked.matched, limits)
    return asked


def _shown(seen: Preview, selector: Selector, limits: Limits) -> dict[str, Any]:
    shown = asdict(seen) | {"selector": selector.given(), "concurrency": limits.concurrency}
    shown["endpoints"] = [{"endpoint_id": endpoint_id, "count": count} for endpoint_id, count in seen.endpoints]
    return shown


def _tell_dry_run(seen: Preview, limits: Limits) -> None:
    from app.errors import Conflict

    if seen.truncated:
        say(f"more than {limits.max_scan} open dead letters were there: the rest was not looked at; raise --max-scan")
    if seen.count > limits.max_items:
        say(f"only the oldest {limits.max_items} would be sent again; raise --max")
    try:
        check(seen.count, limits)
    except Conflict as refusal:
        say(f"with --execute this is {refusal}")
    count = min(seen.count, limits.max_items)
    say(f"dry run: nothing was done; with --execute --reason WHY, {count} would be sent again")


def _confirm(count: int) -> None:
    from app.errors import InvalidInput

    if not sys.stdin.isatty():
        raise InvalidInput(f"{count} dead letters would be sent again, and there is no terminal to ask on: add --yes")
    if count <= TYPED_ABOVE:
        typer.confirm(f"Send {count} dead letters again?", abort=True, err=True)
    elif typer.prompt(f"Type {count} to send {count} dead letters again", err=True) != str(count):
        raise typer.Abort


def _tell_asked(asked: BulkReplay) -> None:
    if asked.repeated:
        say("this key was used for the same replay before: nothing was done again")
        return
    skipped = "".join(f"; {count} skipped ({why.replace('_', ' ')})" for why, count in asked.skipped.items())
    say(
        f"replay {asked.replay_id}: {asked.items} will be sent again, about {asked.estimated_s:g} s{skipped}; "
        f"stop it: homing replays cancel {asked.replay_id} --reason WHY"
    )


def _followed(access: Access, tenant: str, asked: BulkReplay) -> tuple[dict[str, Any], int]:
    from workers.cli.following import follow, tell_end

    progress = follow(access, tenant, asked.replay_id)
    return asdict(progress), tell_end(progress)
