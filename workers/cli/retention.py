"""`homing retention`: drops the weeks that are old and that nothing needs any more, while deliveries go on."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.cli.access import Access, open_access, operator
from workers.cli.options import Json
from workers.cli.output import give, say

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from app.retention import Judged


@dataclass
class _Told:
    """What is shown of one run."""

    cutoff: datetime
    dry_run: bool
    weeks: list[dict[str, Any]] = field(default_factory=list)
    removed: dict[str, int] = field(default_factory=dict)
    keys_in_use: str = ""
    """Who locks the idempotency keys, so that some that may go are still there."""

    def count(self, fate: str) -> int:
        return sum(week["fate"] == fate for week in self.weeks)

    def add(self, judged: Judged, fate: str, why: str = "") -> None:
        week = judged.week
        self.weeks.append(
            {"week": f"{week.starts:%Y-%m-%d}", "fate": fate, "rows": week.rows, "bytes": week.bytes}
            | {"needs": judged.needs, "why": why, "partitions": week.partitions}
        )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("retention", rich_help_panel="Run")(retention)


def retention(
    keep: Annotated[int, typer.Option(metavar="DAYS", help="Weeks that ended longer ago may go.")],
    execute: Annotated[
        bool, typer.Option("--execute/--dry-run", help="Do it; without this, only show what would go.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is no terminal.")] = False,
    forget_keys: Annotated[
        bool, typer.Option("--forget-keys", help="Idempotency keys that old go too: used again, they are new.")
    ] = False,
    patience: Annotated[
        int, typer.Option(metavar="S", min=0, max=3600, help="Seconds to try to lock what is in use.")
    ] = 60,
    as_json: Json = False,
) -> None:
    """Drop old weeks of events, deliveries and attempts. What is unfinished, or may be sent again, keeps its week.

    Run it as the role that ran `homing migrate`: it must own the tables. Exit code 0: done. 6: something that may go is in use.
    """
    with open_access() as access:
        told = access.with_engine(lambda engine: _look(engine, keep))
        if execute:
            if told.count("may go") and not yes:
                _confirm(told)
            told = _carry_out(access, keep, patience, forget_keys)
    if as_json:
        answer = {"cutoff": told.cutoff, "dry_run": told.dry_run, "weeks": told.weeks, "removed": told.removed}
        give(answer | {"keys_in_use": told.keys_in_use}, as_json=True)
    else:
        columns = ("week", "fate", "rows", "bytes", "needs", "why")
        give(told.weeks, as_json=False, columns=columns, none=f"no week ended before {told.cutoff:%Y-%m-%d %H:%M}")
    _summarise(told)
    if told.count("in use") or told.keys_in_use:
        raise typer.Exit(6)


async def _look(engine: AsyncEngine, keep: int) -> _Told:
    from app.retention import cutoff_of, judge_weeks

    async with engine.connect() as connection:
        told = _Told(await cutoff_of(connection, keep), dry_run=True)
        for judged in await judge_weeks(connection, told.cutoff):
            told.add(judged, "kept" if judged.needs else "may go")
    return told


def _carry_out(access: Access, keep: int, patience: int, forget_keys: bool) -> _Told:
    from app.retention import only_one

    async def drop(engine: AsyncEngine) -> _Told:
        async with only_one(engine) as connection:
            return await _drop(connection, keep, patience, forget_keys)

    try:
        return access.with_engine(drop)
    except KeyboardInterrupt:
        say(
            "\neach week goes wholly or not at all: what was dropped stays dropped; the same command goes on with the rest"
        )
        raise


async def _drop(connection: AsyncConnection, keep: int, patience: int, forget_keys: bool) -> _Told:
    from app import forgetting
    from app.retention import cutoff_of, drop_week, judge_weeks
    from app.short_locks import Held

    told = _Told(await cutoff_of(connection, keep), dry_run=False)
    for judged in await judge_weeks(connection, told.cutoff):
        if judged.needs:
            told.add(judged, "kept")
            continue
        try:
            dropped = await drop_week(connection, judged.week, actor=operator(), keep_days=keep, patience_s=patience)
        except Held as held:
            told.add(judged, "in use", str(held))
        else:
            told.add(dropped, "kept" if dropped.needs else "dropped")
            if not dropped.needs:
                say(f"dropped the week of {judged.week.starts:%Y-%m-%d}")
    told.removed["dead_letters"] = await forgetting.forget_letters(connection, told.cutoff)
    told.removed["events_without_week"] = await forgetting.forget_events(connection, told.cutoff)
    if forget_keys:
        keys = await forgetting.forget_keys(connection, told.cutoff, patience_s=patience)
        told.removed["idempotency_keys"], told.keys_in_use = keys.count, keys.held
    return told


def _confirm(told: _Told) -> None:
    from app.errors import InvalidInput

    weeks = told.count("may go")
    if not sys.stdin.isatty():
        raise InvalidInput(f"{weeks} weeks would be dropped, and there is no terminal to ask on: add --yes")
    typer.confirm(f"Drop {weeks} weeks for good?", abort=True, err=True)


def _summarise(told: _Told) -> None:
    kept = told.count("kept")
    also = f"; {kept} kept, since something still needs them" if kept else ""
    if told.dry_run:
        say(f"dry run: nothing was done; with --execute, {told.count('may go')} weeks would be dropped{also}")
        return
    others = "".join(f"; {count} {name.replace('_', ' ')} removed" for name, count in told.removed.items() if count)
    say(f"{told.count('dropped')} weeks dropped{also}{others}")
    if in_use := told.count("in use"):
        say(
            f"{in_use} weeks that may go are in use, and were left as they were: end what locks them, then run this again"
        )
    if told.keys_in_use:
        say(
            f"idempotency keys that may go are left, their table is {told.keys_in_use}: run this again when that is over"
        )
