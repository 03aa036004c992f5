"""Checks of Postgres: version, schema, clock, what is late, partitions, transactions that are open for long."""

from __future__ import annotations

from datetime import UTC, datetime
from time import monotonic
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.partitions import WEEKS_AHEAD
from app.reads import backlog
from workers.cli.check import Check

VERSIONS = range(15, 19)
"""Major versions of PostgreSQL that are supported."""
CLOCK_WARN_S, CLOCK_FAIL_S = 2.0, 60.0
"""Signatures carry this machine's time; receivers refuse what is 300 s off."""
LATE_WARN_S, LATE_FAIL_S = 60.0, 900.0
"""Work that waits longer than this is not being done."""
OPEN_WARN_S = 300
"""A transaction that is open this long keeps dead rows of hot tables from being cleared away."""

_PARTITIONS = text(
    """
    SELECT n, parent, to_regclass(
        parent || '_' || to_char(date_trunc('week', now() AT TIME ZONE 'UTC') + n * interval '1 week', 'YYYYMMDD')
    ) IS NOT NULL AS there
    FROM generate_series(0, :weeks) AS n, unnest(ARRAY['events', 'deliveries', 'delivery_attempts']) AS parent
    """
)

_IN_DEFAULTS = text(
    """
    SELECT 'events_default' AS name WHERE EXISTS (SELECT FROM events_default)
    UNION ALL SELECT 'deliveries_default' WHERE EXISTS (SELECT FROM deliveries_default)
    UNION ALL SELECT 'delivery_attempts_default' WHERE EXISTS (SELECT FROM delivery_attempts_default)
    """
)

_OPEN_LONG = text(
    """
    SELECT pid, coalesce(nullif(application_name, ''), usename, '?') AS who,
           extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds
    FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend'
      AND xact_start < now() - :limit * interval '1 second'
    ORDER BY xact_start
    """
)


async def check_version(connection: AsyncConnection) -> Check:
    """Whether the server is one that Homing is tested with."""
    number = int((await connection.execute(text("SHOW server_version_num"))).scalar_one())
    major, found = number // 10000, f"reachable, version {number // 10000}.{number % 10000}"
    if major < VERSIONS.start:
        return Check("Postgres", "fail", found, f"upgrade to PostgreSQL {VERSIONS.start} or later")
    if major not in VERSIONS:
        return Check("Postgres", "warn", found, f"Homing is tested with {VERSIONS.start} to {VERSIONS.stop - 1}")
    return Check("Postgres", "ok", found)


def check_schema(at: str | None, head: str) -> Check:
    """Whether the schema is the one that this program was written for."""
    if at == head:
        return Check("schema", "ok", f"at {at}")
    if at is None:
        return Check("schema", "fail", "the database has no schema of Homing's", "run `homing migrate`")
    return Check(
        "schema", "fail", f"at {at}, this program knows {head}", "run `homing migrate`, or install the newer Homing"
    )


async def check_clock(connection: AsyncConnection) -> Check:
    """How far this machine's clock is from the database's."""
    best: tuple[float, float] | None = None
    for _ in range(3):  # the quickest answer says most
        began, before = monotonic(), datetime.now(UTC)
        there = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
        took = monotonic() - began
        if best is None or took < best[0]:
            best = (took, (there - before).total_seconds() - took / 2)
    assert best is not None
    offset = abs(best[1])
    found = f"{offset:.3f} s between this machine and Postgres"
    if offset < CLOCK_WARN_S:
        return Check("clock", "ok", found)
    return Check("clock", "fail" if offset >= CLOCK_FAIL_S else "warn", found, "synchronise both clocks (NTP)")


async def check_lateness(connection: AsyncConnection) -> list[Check]:
    """Whether what waits is being worked on."""
    waiting = await backlog(connection)
    checks = [
        _late("outbox", waiting.outbox_waiting, waiting.outbox_oldest_s, "see that `homing poller` runs, and its log"),
        _late(
            "due deliveries",
            waiting.due,
            waiting.due_oldest_s,
            "see that `homing poller` and enough `homing worker` run, and their logs",
        ),
    ]
    if waiting.set_aside:
        found = f"{waiting.set_aside} outbox rows set aside"
        checks.append(
            Check("set aside", "warn", found, "`homing events rejected`, mend the cause, `homing events resubmit`")
        )
    else:
        checks.append(Check("set aside", "ok", "no outbox row is set aside"))
    return checks


def _late(name: str, count: int, oldest_s: float, do: str) -> Check:
    if not count:
        return Check(name, "ok", "nothing waits")
    found = f"{count} wait, the oldest for {max(oldest_s, 0):.0f} s"
    if oldest_s < LATE_WARN_S:
        return Check(name, "ok", found)
    return Check(name, "fail" if oldest_s >= LATE_FAIL_S else "warn", found, do)


async def check_partitions(connection: AsyncConnection) -> list[Check]:
    """Whether new rows will find their partitions."""
    rows: list[Any] = list(await connection.execute(_PARTITIONS, {"weeks": WEEKS_AHEAD}))
    missing = sorted({row.n for row in rows if not row.there})
    if not missing:
        ahead = Check("partitions", "ok", f"there for this week and the next {WEEKS_AHEAD}")
    else:
        found = f"missing from week +{missing[0]} on" if missing[0] else "missing for this week"
        ahead = Check(
            "partitions", "fail" if missing[0] <= 1 else "warn", found, "see that `homing poller` runs: it makes them"
        )
    filled = list((await connection.execute(_IN_DEFAULTS)).scalars())
    if not filled:
        return [ahead, Check("default partitions", "ok", "empty")]
    do = "rows there have ids without a time in them, or came while a partition was missing; retention drops weeks, not these"
    return [ahead, Check("default partitions", "warn", f"rows in {', '.join(filled)}", do)]


async def check_transactions(connection: AsyncConnection) -> Check:
    """Whether somebody keeps a transaction open that holds the cleaning of hot tables up."""
    rows: list[Any] = list(await connection.execute(_OPEN_LONG, {"limit": OPEN_WARN_S}))
    if not rows:
        return Check("transactions", "ok", f"none open for {OPEN_WARN_S} s or longer")
    found = ", ".join(f"{row.who} (pid {row.pid}) for {row.seconds:.0f} s" for row in rows[:3])
    do = "end them: SELECT pg_terminate_backend(pid)"
    return Check("transactions", "warn", f"{len(rows)} open for long: {found}", do)
