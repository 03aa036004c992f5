"""Strong locks in short moments: whoever waits for one stands in front of everybody who comes later, so the wait is cut short.

Who does not get its locks within a fraction of a second gives way, and comes again, for as long as it has patience.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

#: Milliseconds that one lock, and all of them together, are waited for: as long as others may stand still behind us.
LOCK_MS, LOCKS_MS = 100, 300
#: Milliseconds that each statement may take under the locks.
WORK_MS = 2_000
#: Seconds between two tries, at first and at most; doubles in between, and varies by half.
PAUSE_S = (0.2, 3.0)
#: What each mode waits for: everybody, or everybody who does not only read.
HARMLESS: dict[str, list[str]] = {"ACCESS EXCLUSIVE": [], "SHARE ROW EXCLUSIVE": ["AccessShareLock", "RowShareLock"]}

# Who keeps such a lock on these tables, longest first.
_HOLDER = text(
    """
    SELECT a.pid, CASE WHEN a.backend_type = 'client backend' THEN a.application_name ELSE a.backend_type END AS name,
           extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.granted AND l.pid <> pg_backend_pid() AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.relation = ANY(CAST(CAST(:tables AS text[]) AS regclass[])) AND l.mode <> ALL(CAST(:harmless AS text[]))
    ORDER BY a.xact_start LIMIT 1
    """
)

T = TypeVar("T")


class Held(Exception):
    """The locks were not to be had in time; says who has them."""


async def under_locks(
    connection: AsyncConnection,
    tables: Sequence[str],
    mode: str,
    work: Callable[[AsyncConnection], Awaitable[T]],
    *,
    patience_s: float,
) -> T:
    """Do the work in a transaction of its own that has locked these tables, without their children, before it begins.

    Args:
        connection: in no transaction.
        tables: in the order in which they are locked; names that need no quotes.
        mode: one of `HARMLESS`.
        work: may be begun again; what it had done was rolled back.
        patience_s: for how long to try to get the locks.

    Raises:
        Held: somebody kept the tables locked all that time; nothing was done.
    """
    deadline, pause_s = monotonic() + patience_s, PAUSE_S[0]
    while True:
        try:
            async with connection.begin():
                await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_MS}"))
                await connection.execute(text(f"SET LOCAL statement_timeout = {LOCKS_MS}"))
                names = ", ".join(f"ONLY {table}" for table in tables)
                await connection.execute(text(f"LOCK TABLE {names} IN {mode} MODE"))
                await connection.execute(text(f"SET LOCAL statement_timeout = {WORK_MS}"))
                return await work(connection)
        except DBAPIError as error:
            # lock_not_available; query_canceled: the time for all locks, or for the work under them, was over; deadlock
            if getattr(error.orig, "sqlstate", None) not in ("55P03", "57014", "40P01"):
                raise
        if monotonic() + pause_s > deadline:
            raise Held(await _holder(connection, tables, mode))
        await asyncio.sleep(pause_s * (0.5 + random.random()))
        pause_s = min(pause_s * 2, PAUSE_S[1])


async def _holder(connection: AsyncConnection, tables: Sequence[str], mode: str) -> str:
    async with connection.begin():
        found = await connection.execute(_HOLDER, {"tables": list(tables), "harmless": HARMLESS[mode]})
        row = found.one_or_none()
    if row is None:
        return "locked, or the time for the work was over, at every try"
    return f"locked by {row.name or 'somebody'} (pid {row.pid}), whose transaction is {row.seconds or 0:.0f} s old"
