"""What a producer needs: INSERT on outbox_events, plain SQL or `add_event`, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from app.db import sqlalchemy_url
from app.intake import take_from_outbox
from app.outbox import add_event
from tests.factories import make_endpoint, one, rows

ROLE = "homing_test_producer"


@pytest.fixture
def producer(database_url: str) -> Iterator[psycopg.Connection]:
    """A session whose role may INSERT into outbox_events and do nothing else."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(f"DROP ROLE IF EXISTS {ROLE}")
        owner.execute(f"CREATE ROLE {ROLE}")
        owner.execute(f"GRANT INSERT ON outbox_events TO {ROLE}")
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"SET ROLE {ROLE}")
            yield connection
        owner.execute(f"DROP OWNED BY {ROLE}")
        owner.execute(f"DROP ROLE {ROLE}")


@pytest.fixture
def sync_connection(database_url: str) -> Iterator[Connection]:
    engine = create_engine(sqlalchemy_url(database_url))
    with engine.connect() as connection:
        yield connection
    engine.dispose()


async def waiting(engine: AsyncEngine) -> int:
    return int((await one(engine, "SELECT count(*) FROM outbox_events")).count)


async def test_plain_insert_with_all_defaults_is_enough(producer: psycopg.Connection, engine: AsyncEngine) -> None:
    await make_endpoint(engine)
    producer.execute("""INSERT INTO outbox_events (event_type, payload) VALUES ('invoice.paid', '{"a": 1}')""")
    row = await one(engine, "SELECT *, created_at <= now() AS past FROM outbox_events")
    assert (row.tenant_id, row.past, row.request_id.startswith("req_")) == ("default", True, True)
    intake = await take_from_outbox(engine, limit=1, capacity=1, owner="p", lease_s=20, payload_max_bytes=100)
    assert len(intake.claimed) == 1


async def test_insert_is_enough_while_a_poller_sleeps(producer: psycopg.Connection, engine: AsyncEngine) -> None:
    async with engine.connect() as poller:
        await poller.exec_driver_sql("SELECT pg_advisory_lock(1752132965)")
        producer.execute("INSERT INTO outbox_events (event_type, payload) VALUES ('invoice.paid', '{}')")
    assert await waiting(engine) == 1


@pytest.mark.parametrize("table", ["outbox_events", "outbox_rejected", "events", "deliveries", "endpoints", "tenants"])
@pytest.mark.parametrize("statement", ["SELECT FROM {}", "DELETE FROM {}", "TRUNCATE {}", "SELECT FROM {} FOR UPDATE"])
def test_producer_can_do_nothing_else(producer: psycopg.Connection, statement: str, table: str) -> None:
    with pytest.raises(InsufficientPrivilege):
        producer.execute(sql.SQL(statement).format(sql.Identifier(table)))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE outbox_events SET payload = '{}'",
        "INSERT INTO events SELECT",
        "INSERT INTO deliveries (tenant_id) VALUES ('default')",
        "SELECT FROM endpoint_secrets",
        "SELECT FROM delivery_status",
        "SELECT homing_ensure_partitions(60)",
    ],
)
def test_producer_can_change_nothing(producer: psycopg.Connection, statement: str) -> None:
    with pytest.raises(InsufficientPrivilege):
        producer.execute(statement)


# --- add_event -------------------------------------------------------------------------------------------------------


async def test_add_event_in_a_session_belongs_to_its_transaction(
    sync_connection: Connection, engine: AsyncEngine
) -> None:
    with Session(sync_connection) as session:
        add_event(session, "a.b", {})
        session.rollback()
        assert await waiting(engine) == 0
        add_event(session, "a.b", {})
        assert await waiting(engine) == 0
        session.commit()
    assert await waiting(engine) == 1


async def test_add_event_on_a_connection_never_commits(sync_connection: Connection, engine: AsyncEngine) -> None:
    event_id, request_id = add_event(sync_connection, "a.b", {"amount": 1})
    assert await waiting(engine) == 0
    sync_connection.commit()
    assert await one(engine, "SELECT id, request_id, payload FROM outbox_events") == (
        event_id,
        request_id,
        {"amount": 1},
    )


async def test_add_event_runs_in_an_async_session(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await session.run_sync(add_event, "a.b", {})
        assert await waiting(engine) == 0
        await session.commit()
    assert await waiting(engine) == 1


async def test_add_event_runs_on_an_async_connection(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.run_sync(add_event, "a.b", {})
        assert await waiting(engine) == 0
        await connection.commit()
    assert await waiting(engine) == 1


async def test_add_event_writes_every_column(sync_connection: Connection, engine: AsyncEngine) -> None:
    columns: dict[str, Any] = {
        "tenant_id": "default",
        "request_id": "r",
        "idempotency_key": "k",
        "traceparent": "00-t",
        "run_id": "run",
        "ordering_key": "o",
        "headers": {"x-a": "b"},
    }
    event_id, request_id = add_event(sync_connection, "a.b", ["é", None, 1.5], **columns)
    sync_connection.commit()
    row = (await one(engine, "SELECT to_jsonb(o) - 'created_at' FROM outbox_events o"))[0]
    assert request_id == "r"
    assert row == columns | {"id": str(event_id), "event_type": "a.b", "payload": ["é", None, 1.5]}


@pytest.mark.parametrize("payload", [float("nan"), {"a": float("inf")}, [float("-inf")], {1, 2}, object()])
async def test_payload_that_is_not_json_is_refused_and_writes_nothing(
    sync_connection: Connection, engine: AsyncEngine, payload: object
) -> None:
    with pytest.raises((ValueError, TypeError)):
        add_event(sync_connection, "a.b", payload)
    sync_connection.commit()
    assert await waiting(engine) == 0


@pytest.mark.parametrize("payload", ["a\x00b", "\ud800"], ids=["NUL", "lone surrogate"])
def test_payload_that_postgres_refuses_is_the_callers_error(sync_connection: Connection, payload: str) -> None:
    with pytest.raises(DBAPIError):
        add_event(sync_connection, "a.b", payload)
    sync_connection.rollback()


async def test_add_event_needs_no_more_than_insert_and_the_two_returned_columns(
    producer: psycopg.Connection, sync_connection: Connection, engine: AsyncEngine
) -> None:
    await rows(engine, f"GRANT SELECT (id, request_id) ON outbox_events TO {ROLE}")
    sync_connection.exec_driver_sql(f"SET ROLE {ROLE}")
    add_event(sync_connection, "a.b", {})
    sync_connection.commit()
    assert await waiting(engine) == 1
