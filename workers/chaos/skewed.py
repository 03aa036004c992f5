"""Homing's command line in a process whose wall clock is wrong: by as many seconds as the file named by CHAOS_CLOCK says.

Run as `python -m workers.chaos.skewed worker`. The clock is replaced before anything of Homing is imported; the monotonic
clock stays right, as it does on a machine whose time is set.
"""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

_FILE = Path(os.environ["CHAOS_CLOCK"])
_true_time = time.time
_seen = [-1.0, 0.0]


def _shift() -> float:
    """The file's number, read at most every 50 ms."""
    now = time.monotonic()
    if now - _seen[0] > 0.05:
        _seen[:] = [now, float(_FILE.read_text(encoding="ascii") or 0)]
    return _seen[1]


def _time() -> float:
    return _true_time() + _shift()


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _Datetime:
        return cls.fromtimestamp(_time(), tz)


def main() -> None:
    """Replace the clock, then be the command line."""
    time.time = _time
    time.time_ns = lambda: int(_time() * 1e9)
    datetime.datetime = _Datetime  # type: ignore[misc]
    from workers.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
