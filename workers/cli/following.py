"""Following a replay until nothing of it waits or is under way: a bar on a terminal, a line of JSON every 5 s elsewhere."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import UUID

from workers.cli.access import Access
from workers.cli.output import say

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from app.bulk_replay import Progress

LOOK_EVERY_S = 0.5
LINE_EVERY_S = 5.0
#: Nothing has moved for this long: whoever should carry it out may not be running.
STALLED_AFTER_S = 10.0
COUNTS = ("items", "waiting", "under_way", "retrying", "resolved", "failed", "conflict", "cancelled")


def follow(access: Access, tenant_id: str, replay_id: UUID) -> Progress:
    """Show how a replay goes until it stands still; what waits for a later attempt is not waited for.

    Ctrl-C ends the looking, not the replay: it says how to go on, and raises KeyboardInterrupt.
    """
    try:
        return access.with_engine(lambda engine: _watch(engine, tenant_id, replay_id))
    except KeyboardInterrupt:
        say(
            f"\nreplay {replay_id} goes on without this command; "
            f"follow it: homing replays show {replay_id} --wait; stop it: homing replays cancel {replay_id} --reason WHY"
        )
        raise


def tell_end(progress: Progress) -> int:
    """Say what a followed replay came to; the exit code: 0 when all of it was delivered, else 6."""
    parts = [f"{n} {name.replace('_', ' ')}" for name in COUNTS[3:] if (n := getattr(progress, name))]
    say(f"replay {progress.replay_id} is {progress.state}: " + (", ".join(parts) or "nothing was sent again"))
    if progress.retrying:
        say(f"what failed transiently is tried again by itself; look: homing replays show {progress.replay_id}")
    return 0 if progress.resolved == progress.items else 6


async def _watch(engine: AsyncEngine, tenant_id: str, replay_id: UUID) -> Progress:
    from app.bulk_replay import replay_progress

    display = _Bar() if sys.stderr.isatty() else _Lines()
    moved_at, seen, warned = monotonic(), None, False
    with display:
        async with engine.connect() as connection:
            while True:
                progress = await replay_progress(connection, tenant_id, replay_id)
                await connection.rollback()
                display.show(progress)
                if not (progress.waiting or progress.under_way):
                    return progress
                now = asdict(progress)
                if now != seen:
                    moved_at, seen = monotonic(), now
                elif not warned and monotonic() - moved_at > STALLED_AFTER_S:
                    say("nothing moves: see that `homing poller` and `homing worker` run (`homing status`)")
                    warned = True
                await asyncio.sleep(LOOK_EVERY_S)


class _Lines:
    def __init__(self) -> None:
        self._at = monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *unused: object) -> None:
        pass

    def show(self, progress: Progress) -> None:
        if monotonic() >= self._at:
            self._at = monotonic() + LINE_EVERY_S
            line: dict[str, Any] = {"replay_id": str(progress.replay_id), "state": progress.state}
            print(json.dumps(line | {name: getattr(progress, name) for name in COUNTS}), file=sys.stderr, flush=True)


class _Bar:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *unused: object) -> None:
        self._progress.stop()

    def show(self, progress: Progress) -> None:
        parts = [f"{n} {name.replace('_', ' ')}" for name in COUNTS[1:] if (n := getattr(progress, name))]
        over = progress.items - progress.waiting - progress.under_way
        self._progress.update(self._task, total=progress.items, completed=over, description=", ".join(parts))
