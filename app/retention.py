"""Retention: whole weeks of events, deliveries and attempts are dropped once they are old and nothing needs them any more.

A week goes in one transaction: its partitions, their parents and the default ones are locked, its rows are judged under that
lock, and the partitions are dropped. Whoever wants something old back (a replay, an event taken late) reads or writes these tables in its
own transaction, so it is either committed, and seen here, or comes later, and finds nothing. The lock stands in front of
all delivering, so it is asked for in short moments (`app.short_locks`).

`DETACH ... CONCURRENTLY` would need no such lock; PostgreSQL refuses it where there is a default partition.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.api_keys import OPERATORS
from app.audit import write_audit
from app.errors import Conflict, InvalidInput
from app.partitions import Week, list_weeks
from app.short_locks import under_locks

#: Days that may be asked for; a partition is a week, so less than one would empty what is in use.
KEEP_MIN_DAYS, KEEP_MAX_DAYS = 1, 36_500
#: Needs are counted no further than this.
COUNT_MAX = 10_000

_ONE_AT_A_TIME = text("SELECT pg_try_advisory_lock(1752132971)")
_CUTOFF = text("SELECT now() - CAST(:days AS integer) * interval '1 day'")

_IN_WEEK = "{0} >= CAST(:low AS uuid) AND {0} < CAST(:high AS uuid)"

# What a week is still needed for. Ids of events and of their deliveries may lie in different weeks: an event can be taken long
# after it was committed. A delivery is over for good when it was delivered; a dead-lettered one may be sent again.
_NEEDS = text(
    f"""
    SELECT (SELECT count(*) FROM (SELECT FROM deliveries WHERE {_IN_WEEK.format("id")} AND due_at IS NOT NULL LIMIT :most) AS n)
               AS unfinished_deliveries,
           greatest((SELECT count(*) FROM (SELECT FROM deliveries WHERE {_IN_WEEK.format("id")} AND state = 'dead_lettered'
                                           LIMIT :most) AS n),
                    (SELECT count(*) FROM (SELECT FROM dead_letters WHERE {_IN_WEEK.format("delivery_id")}
                                           AND status = 'open' LIMIT :most) AS n)) AS open_dead_letters,
           (SELECT count(*) FROM (SELECT FROM replay_items WHERE {_IN_WEEK.format("delivery_id")}
                                  AND state IN ('requested', 'replayed') LIMIT :most) AS n) AS open_replay_items,
           (SELECT count(*) FROM (SELECT FROM deliveries WHERE (id < CAST(:low AS uuid) OR id >= CAST(:high AS uuid))
                                  AND {_IN_WEEK.format("event_id")} AND state <> 'delivered' LIMIT :most) AS n)
               AS needed_by_other_weeks,
           (SELECT count(*) FROM (SELECT FROM outbox_events WHERE {_IN_WEEK.format("id")} LIMIT :most) AS n)
               AS waiting_in_outbox
    """  # noqa: S608 - only the constants above are put in
)

# Dropping a partition locks these, and their default partitions, too.
_PARENTS = ("events", "deliveries", "delivery_attempts")


@dataclass(frozen=True, slots=True)
class Judged:
    """One week that is old enough, and what becomes of it."""

    week: Week
    needs: dict[str, int] = field(default_factory=dict)
    """What still needs it; none: it may go."""


@asynccontextmanager
async def only_one(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection for retention, the only one at a time; nothing of it outlives the connection.

    Raises:
        Conflict: another one is under way.
    """
    async with engine.connect() as connection:
        if not (await connection.execute(_ONE_AT_A_TIME)).scalar_one():
            raise Conflict("another `homing retention` is under way; nothing was dropped")
        await connection.commit()
        yield connection


async def cutoff_of(connection: AsyncConnection, keep_days: int) -> datetime:
    """What is older than this may go, by the database's clock.

    Raises:
        InvalidInput: `keep_days` is out of range.
    """
    if not KEEP_MIN_DAYS <= keep_days <= KEEP_MAX_DAYS:
        raise InvalidInput(f"keep: {keep_days} is not from {KEEP_MIN_DAYS} to {KEEP_MAX_DAYS} days")
    cutoff: datetime = (await connection.execute(_CUTOFF, {"days": keep_days})).scalar_one()
    await connection.commit()
    return cutoff


async def judge_weeks(connection: AsyncConnection, cutoff: datetime) -> list[Judged]:
    """Every week that ended before the cutoff, oldest first, and what still needs it. Changes nothing."""
    judged = []
    async with connection.begin():
        for week in await list_weeks(connection):
            if week.ends <= cutoff:
                judged.append(Judged(week, await _needs(connection, week)))
    return judged


async def drop_week(
    connection: AsyncConnection, week: Week, *, actor: str, keep_days: int, patience_s: float
) -> Judged:
    """Drop a week's partitions unless something needs them by now; audited. Delivering goes on meanwhile.

    Args:
        connection: from `only_one`, in no transaction.
        week: one that `judge_weeks` found free.
        actor: who.
        keep_days: kept with the audit row.
        patience_s: for how long to try to get the locks.

    Raises:
        Held: somebody kept the tables locked all that time; the week is as it was.
    """
    # The parents first, in the order in which events flow, then their default partitions: the way most statements take them.
    tables = [*_PARENTS, *(f"{parent}_default" for parent in _PARENTS), *week.partitions]

    async def drop(connection: AsyncConnection) -> Judged:
        return await _drop_if_free(connection, week, actor=actor, keep_days=keep_days)

    return await under_locks(connection, tables, "ACCESS EXCLUSIVE", drop, patience_s=patience_s)


async def _drop_if_free(connection: AsyncConnection, week: Week, *, actor: str, keep_days: int) -> Judged:
    needs = await _needs(connection, week)
    if not needs:
        await connection.execute(text(f"DROP TABLE {', '.join(week.partitions)}"))
        await write_audit(
            connection,
            tenant_id=OPERATORS,
            action="retention.dropped",
            subject=f"{week.starts:%Y-%m-%d}",
            before={"partitions": week.partitions, "rows": week.rows, "bytes": week.bytes},
            actor=actor,
            reason=f"older than {keep_days} days, and nothing needs it any more",
        )
    return Judged(week, needs)


async def _needs(connection: AsyncConnection, week: Week) -> dict[str, int]:
    found = await connection.execute(_NEEDS, {"low": week.low, "high": week.high, "most": COUNT_MAX})
    return {name: count for name, count in found.one()._mapping.items() if count}
