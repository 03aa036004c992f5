"""The command `homing demo`: what it prints, and what it exits with."""

from __future__ import annotations

import asyncio
import json as json_text
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from workers.demo.ledger import Ledger
    from workers.demo.stage import Stage


def demo(
    events: Annotated[
        int, typer.Option("--events", min=1, max=1_000_000, metavar="N", help="Business transactions to run.")
    ] = 1000,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the home, the database and the logs; say where.")] = False,
) -> None:
    """Run everything for real, kill a worker in the middle, and prove that nothing is lost.

    On servers of its own in a temporary home (or in a database of its own at HOMING_DATABASE_URL), so it never touches your
    data. Exits with 1 if a committed event is lost, an event that was rolled back is sent, a signature does not verify, a
    request is sent twice without a record that its first answer was missed, or the time limit passes.

    The keys of --json: transactions; rolled_back; events (orders committed); deliveries (event and subscribed endpoint);
    delivered (answered 2xx); retried (needed more than one attempt); dead_lettered; replayed; lost (committed, never
    answered 2xx); phantom (requests that nothing committed asked for); duplicates (2xx answers beyond the first, same
    endpoint and webhook-id); duplicates_flagged (those that pair with an attempt recorded as not answered);
    signatures_bad; seconds.
    """
    ledger, still_open, kept = _run(events, keep=keep)
    failures = ([f"the time limit passed: {still_open}"] if still_open else []) + ledger.faults
    if json:
        print(json_text.dumps(ledger.as_dict()))
    else:
        _print_for_people(ledger, failed=bool(failures))
    for line in kept:
        print(line, file=sys.stderr)
    for failure in failures:
        print(f"homing demo: {failure}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)


def _run(transactions: int, *, keep: bool) -> tuple[Ledger, str, list[str]]:
    # Imported here: `homing --help` must not wait for it.
    from workers.demo.progress import Progress
    from workers.demo.scenario import Scenario
    from workers.demo.stage import Stage

    began = monotonic()
    ending = _Ending()

    async def play(stage: Stage, progress: Progress) -> tuple[Ledger, str]:
        with ending.by_cancelling_this_task():
            return await Scenario(stage, progress, transactions, began=began).play()

    with Progress() as progress:
        progress.say("Starting PostgreSQL and Redis for this demo alone.")
        with Stage(keep=keep) as stage:
            try:
                ledger, still_open = asyncio.run(play(stage, progress))
            except asyncio.CancelledError:
                sys.exit(128 + ending.number)
            return ledger, still_open, stage.where_things_are() if keep else []


def _print_for_people(ledger: Ledger, *, failed: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = (
        ("transactions", ledger.transactions, f"{ledger.rolled_back} of them rolled back"),
        ("events committed", ledger.events, "one for each order, however often written"),
        ("deliveries", ledger.deliveries, "events × the endpoints that subscribe to them"),
        ("retried", ledger.retried, "needed more than one attempt"),
        ("dead-lettered", ledger.dead_lettered, f"{ledger.replayed} replayed after the repair"),
        ("delivered", ledger.delivered, "answered 2xx, by the receiver's own log"),
        ("lost", ledger.lost, "committed, and never answered 2xx"),
        ("phantom", ledger.phantom, "sent, though nothing was committed"),
        ("duplicates", ledger.duplicates, f"{ledger.duplicates_flagged} after an attempt recorded as unanswered"),
        ("bad signatures", ledger.signatures_bad, "verified by the receiver's own code"),
    )
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for name, number, words in rows:
        table.add_row(name, f"{number:,}", words)
    console = Console(highlight=False)
    console.print(table)
    if failed:
        return
    console.print(
        f"In {ledger.seconds:.0f} seconds every order that was committed reached every endpoint that asked for it, although "
        "a worker was killed, one endpoint failed at first and another was down. Nothing that was rolled back was sent.\n"
        "A request that was cut off by the kill is sent again, with the same webhook-id: at least once, never silently "
        "twice.\n"
        "Next: `homing up` runs Homing for your own events; the README shows the one INSERT that makes one.",
        soft_wrap=not console.is_terminal,
    )


class _Ending:
    """Makes SIGTERM and SIGHUP end the demo as a Ctrl-C does: everything that was started is stopped and removed."""

    def __init__(self) -> None:
        self.number = 0
        self._cancel: Callable[[], object] | None = None
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    @contextmanager
    def by_cancelling_this_task(self) -> Iterator[None]:
        """While a loop runs: an exception out of the blue would leave its tasks in pieces."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            yield
        finally:
            self._cancel = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self._cancel is None:
            sys.exit(128 + number)
        self._cancel()


if __name__ == "__main__":
    typer.run(demo)
