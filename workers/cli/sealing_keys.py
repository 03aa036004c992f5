"""`homing secrets`: which keys seal the endpoints' secrets, and sealing all of them again with the current one."""

from __future__ import annotations

import json
import sys
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.cli.access import Access, open_access
from workers.cli.options import Json
from workers.cli.output import give, say

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncEngine

    from app.rotation import Resealing
    from app.sealing import SecretKeys

app = typer.Typer(help="Keys that encrypt the endpoints' signing secrets at rest.")

#: Seconds between two lines of progress where nobody looks at a bar.
TELL_EVERY_S = 5.0


@app.command("status")
def status(as_json: Json = False) -> None:
    """Count the stored secrets by the key that sealed them."""
    from app.rotation import secrets_by_key

    with open_access() as access:
        keys = access.secret_keys()
        rows = access.transact(lambda connection: secrets_by_key(connection, keys))
    give(rows, as_json=as_json)
    if missing := [row["key_id"] for row in rows if not row["known"]]:
        say(f"no key here opens what these have sealed: {', '.join(missing)}")


@app.command("rotate-key")
def rotate_key(
    new_key: Annotated[
        bool, typer.Option("--new-key", help="First make a new key; with Homing's own key file only.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Seal every endpoint secret again with the current key, the first one; receivers notice nothing.

    May run while everything runs, may be interrupted, and may be run again. Where HOMING_SECRET_KEYS is set: add the new
    key as the second one for every process and restart them, so that all can open what it seals; make it the first one
    and restart; run this; drop the old key once `secrets status` shows 0 for it and no backup needs it. With the key file
    that Homing makes, `--new-key` is all there is to do: running processes read the file again when they need to.
    """
    from app.sealing import put_new_key_first

    with open_access() as access:
        keys = put_new_key_first(access.settings) if new_key else access.secret_keys()
        if new_key:
            say(f"made key {keys.current_key_id}; it seals from now on")
        done = _reseal(access, keys)
    result: dict[str, Any] = {
        "current_key_id": keys.current_key_id,
        "resealed": done.resealed,
        "already_current": done.already_current,
        "unopened": done.unopened,
        "held": done.left,
        "missing_keys": dict(done.missing_keys),
        "damaged": [str(secret_id) for secret_id in done.damaged],
    }
    give(result, as_json=as_json)
    if done.missing_keys:
        say(f"add these keys back, after the current one, and run this again: {', '.join(sorted(done.missing_keys))}")
    if done.damaged:
        say("damaged secrets open with no key: give those endpoints new ones, `homing endpoints rotate-secret`")
    if done.left:
        say(f"{done.left} secrets were in use by other transactions or are new: run this again")
    if done.unopened or done.left:
        raise typer.Exit(6)


def _reseal(access: Access, keys: SecretKeys) -> Resealing:
    from app.rotation import Resealing, reseal_all

    async def work(engine: AsyncEngine) -> Resealing:
        progress = Resealing(0, 0)
        with _Teller() as teller:
            async for progress in reseal_all(engine, keys):
                teller.tell(progress)
        return progress

    try:
        return access.with_engine(work)
    except KeyboardInterrupt:
        say(
            "\nwhat was sealed again stays so, and both keys open the rest: `homing secrets rotate-key` goes on with it"
        )
        raise


class _Teller:
    """Progress on stderr: a bar on a terminal, elsewhere a JSON object per line, at once and every 5 s."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True) if sys.stderr.isatty() else None
        self._task = self._bar.add_task("sealing", total=None) if self._bar else None
        self._told_at: float | None = None

    def __enter__(self) -> _Teller:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def tell(self, progress: Resealing) -> None:
        """Show how far it has come."""
        done = progress.total - progress.left
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=progress.total)
        elif self._told_at is None or monotonic() - self._told_at >= TELL_EVERY_S:
            self._told_at = monotonic()
            line = {"progress": {"done": done, "of": progress.total, "resealed": progress.resealed}}
            print(json.dumps(line), file=sys.stderr, flush=True)
