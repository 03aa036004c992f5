"""Named places at which a test may kill or stop a process; in production there is nothing behind them.

`HOMING_FAILPOINTS` lists `name=action` pairs, comma-separated: `kill` or `kill@3` (SIGKILL at the third time), `stop` (SIGSTOP),
`pause:0.5` (seconds, blocking). A process takes them only when the database is marked as one that holds nothing but a test
(`homing chaos` marks the one that it makes); anywhere else it refuses to start.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass

import psycopg

from app.errors import SettingsInvalid

#: Every failpoint, in the order of the flow.
NAMES = (
    "write.before_commit",
    "write.committed",
    "intake.before_commit",
    "intake.committed",
    "claim.before_commit",
    "claim.committed",
    "publish.done",
    "deliver.received",
    "start.before_commit",
    "start.committed",
    "post.before",
    "post.answered",
    "record.before_commit",
    "record.committed",
    "ack.before",
    "ack.done",
    "file.before_commit",
    "file.committed",
    "replay.before_commit",
    "replay.committed",
)

#: The table that marks a database as one for tests.
MARK = "homing_chaos_mark"


@dataclass(frozen=True, slots=True)
class _Action:
    verb: str
    at: int
    seconds: float


_armed: dict[str, _Action] = {}
_reached: Counter[str] = Counter()


def reach(name: str) -> None:
    """Say that this place was reached; does nothing unless a test has armed it."""
    if not _armed:
        return
    action = _armed.get(name)
    if action is None:
        return
    _reached[name] += 1
    if _reached[name] < action.at:
        return
    if action.verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action.verb == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        time.sleep(action.seconds)


def arm(text: str | None, database_url: str) -> None:
    """Arm what `HOMING_FAILPOINTS` lists; nothing when it is unset.

    Raises:
        SettingsInvalid: a name or action is unknown, or the database is not marked for tests.
    """
    if not text:
        return
    parsed = dict(_parse(pair) for pair in text.split(","))
    with psycopg.connect(database_url, connect_timeout=5) as connection:
        row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (MARK,)).fetchone()
    if not row or not row[0]:
        raise SettingsInvalid(
            "HOMING_FAILPOINTS is set, but this database is not marked for tests: failpoints kill processes; unset it"
        )
    _armed.update(parsed)


def _parse(pair: str) -> tuple[str, _Action]:
    name, _, action = pair.strip().partition("=")
    verb, at, seconds = action, 1, 0.0
    try:
        if "@" in action:
            verb, _, number = action.partition("@")
            at = int(number)
        elif ":" in action:
            verb, _, number = action.partition(":")
            seconds = float(number)
    except ValueError:
        verb = ""
    if name not in NAMES or verb not in ("kill", "stop", "pause") or at < 1 or not 0 <= seconds <= 60:
        raise SettingsInvalid(
            f"HOMING_FAILPOINTS: {pair.strip()!r} is not name=kill, name=kill@N, name=stop or name=pause:S"
        )
    return name, _Action(verb, at, seconds)
