"""The schema goes up and down, and its functions keep what they promise."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import RFC_4122, UUID

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.backoff import RetryPolicy
from app.errors import ServerAway
from app.migrate import head_revision, migrate
from tests.conftest import Servers
from tests.factories import make_delivery, one, rows

OBJECTS = """
    SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE 'alembic_version%'
    UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typname NOT LIKE '%alembic%'
    ORDER BY 1
"""


@pytest.fixture
def empty_database_url(servers: Servers) -> Iterator[str]:
    with psycopg.connect(servers.running.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE homing_test_empty")
        yield servers.url_of("homing_test_empty")
        connection.execute("DROP DATABASE homing_test_empty WITH (FORCE)")


def objects(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(OBJECTS)]


def test_down_leaves_nothing_and_up_makes_the_same_again(database_url: str) -> None:
    before = objects(database_url)
    assert migrate(database_url, "base") == (head_revision(), None)
    assert objects(database_url) == []
    assert migrate(database_url) == (None, head_revision())
    assert objects(database_url) == before


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    before = objects(database_url)
    assert migrate(database_url) == (head_revision(), head_revision())
    assert objects(database_url) == before


async def test_two_migrations_at_once_both_end_well(empty_database_url: str) -> None:
    results = await asyncio.gather(*(asyncio.to_thread(migrate, empty_database_url) for _ in range(2)))
    assert sorted(results, key=str) == [(head_revision(), head_revision()), (None, head_revision())]


def test_unreachable_server_is_said_so() -> None:
    with pytest.raises(ServerAway):
        migrate("postgresql://nobody@127.0.0.1:1/none")


# --- ids -------------------------------------------------------------------------------------------------------------


async def test_ids_are_of_version_7_unique_and_follow_the_clock(engine: AsyncEngine) -> None:
    clock = "SELECT extract(epoch FROM clock_timestamp()) * 1000 AS ms"
    before = (await one(engine, clock)).ms
    ids = [UUID(str(r.id)) for r in await rows(engine, "SELECT homing_uuid7() AS id FROM generate_series(1, 5000)")]
    after = (await one(engine, clock)).ms
    times = [i.int >> 80 for i in ids]
    assert {(i.version, i.variant) for i in ids} == {(7, RFC_4122)}
    assert len(set(ids)) == len(ids)
    assert times == sorted(times)
    assert before - 1 <= times[0]
    assert times[-1] <= after + 1


async def test_floor_is_the_lowest_id_of_its_time(engine: AsyncEngine) -> None:
    at = "timestamptz '2030-01-07 00:00:00+00'"
    floor = UUID(str((await one(engine, f"SELECT homing_uuid7_floor({at}) AS id")).id))
    assert floor.version == 7
    assert floor.int >> 80 == 1893974400000
    assert floor.int & ((1 << 62) - 1) == 0


# --- partitions ------------------------------------------------------------------------------------------------------


async def test_partitions_made_by_several_at_once_are_made_once(engine: AsyncEngine) -> None:
    made = await asyncio.gather(*(one(engine, "SELECT homing_ensure_partitions(8)") for _ in range(6)))
    assert sorted(m[0] for m in made) == [0, 0, 0, 0, 0, 4 * 3]
    assert (await one(engine, "SELECT homing_ensure_partitions(8)"))[0] == 0


async def test_new_rows_are_in_the_partition_of_their_week(engine: AsyncEngine) -> None:
    await make_delivery(engine)
    week = "to_char(date_trunc('week', now() AT TIME ZONE 'UTC'), 'YYYYMMDD')"
    where = await one(engine, f"SELECT tableoid::regclass::text = 'deliveries_' || {week} FROM deliveries")
    assert where[0]


async def test_row_from_the_future_does_not_keep_its_week_from_being_made(engine: AsyncEngine) -> None:
    """Producers may choose ids: one from a clock that is six weeks fast lands in the default partition."""
    await rows(
        engine,
        """
        INSERT INTO events (id, tenant_id, event_type, body, request_id, created_at)
        VALUES (homing_uuid7_floor(now() + interval '6 weeks'), 'default', 'a.b', '{}', 'r', now())
        """,
    )
    assert (await one(engine, "SELECT homing_ensure_partitions(8)"))[0] == 4 * 3
    assert (await one(engine, "SELECT count(*) FROM events")).count == 1


# --- what others rely on ---------------------------------------------------------------------------------------------


async def test_delivery_status_has_the_promised_columns(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "retry_scheduled")
    row = await one(engine, "SELECT * FROM delivery_status")
    assert set(row._fields) >= {
        *("delivery_id", "tenant_id", "request_id", "event_id", "event_type", "endpoint_id", "endpoint_url", "state"),
        *("attempts", "last_status", "last_class", "last_error", "next_attempt_at", "last_attempt_at", "created_at"),
        *("delivered_at", "failed_at", "replays"),
    }
    assert (row.delivery_id, row.request_id, row.last_status) == (delivery.id, delivery.request_id, 503)
    assert row.next_attempt_at is not None


@pytest.mark.parametrize("state", ["delivering", "delivered", "failed", "dead_lettered"])
async def test_delivery_status_shows_no_next_attempt_where_there_is_none(engine: AsyncEngine, state: str) -> None:
    await make_delivery(engine, state)
    assert (await one(engine, "SELECT next_attempt_at FROM delivery_status")).next_attempt_at is None


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO endpoints (tenant_id, url) VALUES ('nobody', 'http://x')",
        "INSERT INTO endpoints (tenant_id, url, status) VALUES ('default', 'http://x', 'asleep')",
        "INSERT INTO endpoints (tenant_id, url, event_types) VALUES ('default', 'http://x', '{}')",
        "INSERT INTO endpoints (tenant_id, url, max_attempts) VALUES ('default', 'http://x', 0)",
        "INSERT INTO endpoints (tenant_id, url, retry_jitter) VALUES ('default', 'http://x', 'NaN')",
        *(
            f"INSERT INTO endpoints (tenant_id, url, retry_schedule_s) VALUES ('default', 'http://x', {schedule})"
            for schedule in (
                *("'{}'", "'{-1}'", "'{NaN}'", "'{Infinity}'", "'{1,NULL}'", "'{NULL}'", "'{604801}'", "'{{1},{2}}'"),
                "array_fill(1, ARRAY[101])",
            )
        ),
        "INSERT INTO tenants (id, name) VALUES ('a b', '')",
        "INSERT INTO replays (tenant_id, request_id, reason, actor, body_digest) VALUES ('default', 'r', '', 'me', '')",
        "INSERT INTO replays (tenant_id, request_id, reason, actor, body_digest, state) VALUES ('d', 'r', 'x', 'm', '', 'done')",
    ],
)
async def test_impossible_row_is_refused(engine: AsyncEngine, statement: str) -> None:
    with pytest.raises(DBAPIError, match=r"violates|constraint"):
        await rows(engine, statement)


@pytest.mark.parametrize("schedule", ["NULL", "'{0}'", "'{604800}'", "'{1,0.5,60}'", "array_fill(1, ARRAY[100])"])
async def test_schedule_that_the_program_accepts_is_stored(engine: AsyncEngine, schedule: str) -> None:
    await rows(
        engine, f"INSERT INTO endpoints (tenant_id, url, retry_schedule_s) VALUES ('default', 'http://x', {schedule})"
    )
    stored = (await one(engine, "SELECT retry_schedule_s AS delays FROM endpoints")).delays
    RetryPolicy(schedule_s=None if stored is None else tuple(stored))


def test_a_schedule_stored_before_it_was_checked_stops_the_migration_and_changes_nothing(database_url: str) -> None:
    migrate(database_url, "0003")
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO endpoints (tenant_id, url, retry_schedule_s) VALUES ('default', 'http://x', '{-1}')"
        )
    with pytest.raises(IntegrityError, match="endpoints_retry_schedule_s_check"):
        migrate(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE endpoints SET retry_schedule_s = NULL")
    assert migrate(database_url) == ("0003", head_revision())
