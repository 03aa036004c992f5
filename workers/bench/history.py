"""Millions of finished deliveries behind the work: how they are put there, and what they may not slow down."""

# ruff: noqa: S608 - nothing is put into statements but constants of this module
from __future__ import annotations

import asyncio
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier, Literal

from app.claims import claim_due
from app.db import make_engine
from workers.bench.load import Say
from workers.bench.stage import Stage

#: Weeks that a history is spread over, this one included.
WEEKS = 5
#: Rows of one transaction while a history is written.
BATCH = 250_000
#: Deliveries that lie due while claims are timed, and claims that are timed.
DUE, CLAIMS = 5_000, 15

# Ids as the database makes them, but of a given time, and the same for event and delivery of one number.
_IDS = """
    SELECT n, at, encode(substring(int8send((extract(epoch FROM at) * 1000)::bigint) FROM 3) || '\\x7000'::bytea
                         || substring(decode(md5('e' || n), 'hex') FROM 9), 'hex')::uuid AS event_id,
           encode(substring(int8send((extract(epoch FROM at) * 1000)::bigint) FROM 3) || '\\x7000'::bytea
                  || substring(decode(md5('d' || n), 'hex') FROM 9), 'hex')::uuid AS id
    FROM (SELECT n, {began}::timestamptz + ({ended}::timestamptz - {began}::timestamptz) * ((n - {first}) / {size}::float8) AS at
          FROM generate_series({first}, {last}) AS n) AS numbered
"""
_FILL = {
    "events": """
        INSERT INTO events (id, tenant_id, event_type, body, request_id, created_at)
        SELECT event_id, 'default', 'bench.' || n % 10, '{{"n": ' || n || '}}', 'req_' || event_id, at FROM (""" + _IDS + ") AS i",
    "deliveries": """
        INSERT INTO deliveries (id, tenant_id, event_id, endpoint_id, state, due_at, generation, attempts, last_attempt_at,
                                last_outcome, last_status, created_at, delivered_at)
        SELECT i.id, 'default', event_id, p.id, 'delivered', NULL, 1, 1, at, 'delivered', 200, at, at
        FROM (""" + _IDS + """) AS i
        JOIN (SELECT id, row_number() OVER (ORDER BY id) - 1 AS r FROM endpoints) AS p ON p.r = i.n % {endpoints}""",
    "delivery_attempts": """
        INSERT INTO delivery_attempts (delivery_id, generation, tenant_id, number, started_at, duration_ms, outcome,
                                       retryable, http_status, worker)
        SELECT id, 1, 'default', 1, at, 12, 'delivered', false, 200, 'worker@bench:1' FROM (""" + _IDS + ") AS i",
}  # fmt: skip

_PARTITION = """
    SELECT homing_uuid7_floor(CAST({week} AS timestamptz)), homing_uuid7_floor(CAST({week} AS timestamptz) + interval '1 week')
"""


async def fill(stage: Stage, deliveries: int, say: Say) -> None:
    """Write finished deliveries with their events and attempts, the same number into each week; endpoints exist already."""
    now = datetime.now(UTC)
    monday = datetime(now.year, now.month, now.day, tzinfo=UTC) - timedelta(days=now.weekday())
    each = deliveries // WEEKS
    async with await psycopg.AsyncConnection.connect(stage.bench_url(), autocommit=True) as connection:
        row = await (await connection.execute("SELECT count(*) FROM endpoints")).fetchone()
        assert row is not None
        endpoints = row[0]
        for week in range(1, WEEKS):
            await _make_partitions(connection, monday - timedelta(weeks=week))
    done = 0

    async def one(table: str) -> None:
        nonlocal done
        async with await psycopg.AsyncConnection.connect(stage.bench_url(), autocommit=True) as connection:
            for week in range(WEEKS):
                began = monday - timedelta(weeks=week)
                ended = now if week == 0 else began + timedelta(days=6)
                for first in range(week * each, (week + 1) * each, BATCH):
                    last = min(first + BATCH, (week + 1) * each) - 1
                    values = {"began": began, "ended": ended, "first": first, "last": last, "size": BATCH}
                    sql = SQL(_FILL[table]).format(
                        **{name: Literal(value) for name, value in (values | {"endpoints": endpoints}).items()}
                    )
                    await connection.execute(sql)
                    done += last - first + 1
                    say(f"history: {done} of {3 * deliveries} rows")
            await connection.execute(SQL("VACUUM (ANALYZE) {}").format(Identifier(table)))

    await asyncio.gather(*(one(table) for table in _FILL))
    async with await psycopg.AsyncConnection.connect(stage.bench_url(), autocommit=True) as connection:
        await connection.execute("CHECKPOINT")


async def claim_ms(stage: Stage) -> float:
    """How long claiming 100 due deliveries takes while some thousands are due: the median, in milliseconds.

    What is claimed is removed again; nothing else may run.
    """
    engine = make_engine(stage.postgres.url, name="bench", pool_size=1, planned_once=True)
    times = []
    async with await psycopg.AsyncConnection.connect(stage.bench_url(), autocommit=True) as connection:
        await connection.execute(
            "INSERT INTO deliveries (tenant_id, event_id, endpoint_id) "
            "SELECT 'default', gen_random_uuid(), (SELECT id FROM endpoints LIMIT 1) FROM generate_series(1, %s)",
            (DUE,),
        )
        await connection.execute("ANALYZE deliveries")
        for _ in range(CLAIMS):
            async with engine.connect() as claiming:
                began = time.perf_counter()
                claimed, _ = await claim_due(claiming, limit=100, owner="bench", lease_s=20, quarantine_after=5)
                times.append((time.perf_counter() - began) * 1000)
                assert len(claimed) == 100
                await claiming.commit()
        await connection.execute("DELETE FROM deliveries WHERE state = 'pending'")
        await connection.execute("VACUUM deliveries")
    await engine.dispose()
    return round(statistics.median(times), 2)


async def _make_partitions(connection: psycopg.AsyncConnection[Any], week: datetime) -> None:
    bounds = await (await connection.execute(SQL(_PARTITION).format(week=Literal(week)))).fetchone()
    assert bounds is not None
    for table in _FILL:
        await connection.execute(
            SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})").format(
                Identifier(f"{table}_{week:%Y%m%d}"), Identifier(table), *map(Literal, map(str, bounds))
            )
        )
