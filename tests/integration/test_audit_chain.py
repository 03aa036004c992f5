"""The audit trail is append-only, chained per tenant, and tells when a single byte of it was changed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.attempts import Settled, record_if_delivering
from app.audit import Head, Verification, chain_audit, list_audit, recent_heads, verify_audit, write_audit
from app.db import make_engine
from app.errors import InvalidInput
from tests.factories import make_delivery, one, rows

ROWS = 10_000
GENERATE = """
    INSERT INTO audit_events (tenant_id, action, subject, before, after, actor, reason, request_id, traceparent)
    SELECT :tenant, 'delivery.replayed', gen_random_uuid()::text, jsonb_build_object('state', 'failed', 'attempts', n),
           '{"state": "replayed", "attempts": 0}', 'cli:anna', 'receiver mended ' || n, 'order-' || n % 100,
           CASE WHEN n % 2 = 0 THEN '00-' || md5(n::text) || '-01' END
    FROM generate_series(1, :count) AS n
"""
#: What a forger would do to a row: each changes one column by as little as can be.
EDITS = {
    "action": "action = 'delivery.replayeD'",
    "subject": "subject = subject || '0'",
    "before": "before = jsonb_set(before, '{attempts}', '0')",
    "after": "after = after || '{\"x\": 1}'",
    "no before": "before = NULL",
    "json null": "before = 'null'",
    "actor": "actor = 'cli:anne'",
    "reason": "reason = reason || ' '",
    "no reason": "reason = NULL",
    "request id": "request_id = 'order-x'",
    "traceparent": "traceparent = coalesce(traceparent || '0', '')",
    "time": "created_at = created_at + interval '1 microsecond'",
    "hash": "hash = set_byte(hash, 31, get_byte(hash, 31) # 1)",
}


async def chain(engine: AsyncEngine) -> int:
    total = 0
    while True:
        async with engine.begin() as connection:
            chained = await chain_audit(connection)
        total += chained
        if not chained:
            return total


async def verify(engine: AsyncEngine, tenant: str = "default", kept: Head | None = None) -> Verification:
    async with engine.connect() as connection:
        return await verify_audit(connection, tenant, kept=kept)


async def write(engine: AsyncEngine, count: int = 1, tenant: str = "default") -> None:
    await rows(engine, GENERATE, tenant=tenant, count=count)


class Forger:
    """A superuser's transaction without triggers; never committed, so that each forgery starts from a whole chain."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def __call__(self, statement: str, **values: Any) -> Verification:
        async with self.connection.begin() as transaction:
            await self.connection.execute(text("SET LOCAL session_replication_role = replica"))
            await self.connection.execute(text(statement), values)
            found = await verify_audit(self.connection, "default")
            await transaction.rollback()
        return found


@pytest.fixture
async def forge(engine: AsyncEngine) -> AsyncIterator[Forger]:
    async with engine.connect() as connection:
        yield Forger(connection)


# --- chaining --------------------------------------------------------------------------------------------------------


async def test_rows_are_chained_in_order_per_tenant_and_only_once(engine: AsyncEngine) -> None:
    for tenant, count in (("a", 3), ("b", 2), ("a", 2)):
        await write(engine, count, tenant)
    assert await chain(engine) == 7
    assert await chain(engine) == 0
    for tenant, count in (("a", 5), ("b", 2)):
        found = await verify(engine, tenant)
        assert (found.ok, found.rows, found.unchained) == (True, count, 0)
        order = await rows(engine, "SELECT seq FROM audit_events WHERE tenant_id = :t ORDER BY id", t=tenant)
        assert [row.seq for row in order] == list(range(1, count + 1))


async def test_chaining_goes_on_where_it_stopped(engine: AsyncEngine) -> None:
    for total in (3, 6, 9):
        await write(engine, 3)
        assert (await verify(engine)).unchained == 3
        assert await chain(engine) == 3
        found = await verify(engine)
        assert (found.ok, found.rows, found.head and found.head.seq) == (True, total, total)


async def test_many_who_chain_at_once_make_one_chain(engine: AsyncEngine) -> None:
    await write(engine, 500)

    async def work() -> None:
        for _ in range(20):
            async with engine.begin() as connection:
                await chain_audit(connection, at_most=20)

    await asyncio.gather(*(work() for _ in range(5)))
    await chain(engine)
    found = await verify(engine)
    assert (found.ok, found.rows) == (True, 500)


async def test_a_chaining_that_is_rolled_back_leaves_the_rows_to_the_next(engine: AsyncEngine) -> None:
    await write(engine, 5)
    async with engine.connect() as connection:
        assert await chain_audit(connection, at_most=3) == 3
        await connection.rollback()
    assert await chain(engine) == 5
    assert (await verify(engine)).ok


async def test_an_empty_trail_is_whole(engine: AsyncEngine) -> None:
    found = await verify(engine, "nobody")
    assert (found.ok, found.rows, found.head) == (True, 0, None)


# --- append-only -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_events SET reason = 'x'",
        "UPDATE audit_events SET seq = seq + 10 WHERE seq IS NOT NULL",
        "UPDATE audit_events SET seq = NULL, hash = NULL WHERE seq IS NOT NULL",
        "UPDATE audit_events SET seq = 3, hash = sha256('x'), actor = 'x' WHERE seq IS NULL",
        "DELETE FROM audit_events WHERE seq = 1",
        "DELETE FROM audit_events WHERE seq IS NULL",
        "TRUNCATE audit_events",
        "INSERT INTO audit_events (tenant_id, action, subject, actor, seq, hash) "
        "VALUES ('default', 'a', 's', 'me', 3, sha256('x'))",
        "UPDATE audit_heads SET hash = sha256('x')",
        "UPDATE audit_heads SET seq = 1, hash = sha256('x')",
        "DELETE FROM audit_heads",
        "TRUNCATE audit_heads",
    ],
)
async def test_the_trail_is_append_only_even_for_its_owner(engine: AsyncEngine, statement: str) -> None:
    await write(engine, 2)
    await chain(engine)
    await write(engine, 1)
    with pytest.raises(DBAPIError, match="append-only"):
        await rows(engine, statement)
    await chain(engine)
    assert (await verify(engine)).rows == 3


async def test_a_role_with_insert_and_select_is_enough_and_can_do_no_more(
    engine: AsyncEngine, database_url: str
) -> None:
    await rows(engine, "CREATE ROLE homing_test_app LOGIN PASSWORD 'app'")
    try:
        await rows(engine, "GRANT SELECT, INSERT ON audit_events TO homing_test_app")
        await rows(engine, "GRANT SELECT ON audit_heads TO homing_test_app")
        await rows(engine, "GRANT EXECUTE ON FUNCTION homing_chain_audit(integer) TO homing_test_app")
        scheme, _, rest = database_url.partition("://")
        app = make_engine(f"{scheme}://homing_test_app:app@{rest.rpartition('@')[2]}", name="app", pool_size=2)
        try:
            async with app.begin() as connection:
                await write_audit(connection, tenant_id="default", action="a.b", subject="s", actor="me")
            assert await chain(app) == 1
            assert (await verify(app)).ok
            await rows(engine, "REVOKE EXECUTE ON FUNCTION homing_chain_audit(integer) FROM homing_test_app")
            for statement in (
                "SELECT homing_chain_audit(1)",
                "UPDATE audit_events SET seq = 1",
                "DELETE FROM audit_events",
                "DELETE FROM audit_heads",
            ):
                with pytest.raises(DBAPIError, match="permission denied"):
                    await rows(app, statement)
        finally:
            await app.dispose()
    finally:
        await rows(engine, "DROP OWNED BY homing_test_app")
        await rows(engine, "DROP ROLE homing_test_app")


# --- finding forgeries -----------------------------------------------------------------------------------------------


async def test_every_single_edit_of_ten_thousand_rows_is_found(engine: AsyncEngine, forge: Forger) -> None:
    """A row is judged by itself and the hash stored before it, so all rows edited at once are as many single edits."""
    await write(engine, ROWS)
    assert await chain(engine) == ROWS
    assert (await verify(engine)).rows == ROWS
    for name, edit in EDITS.items():
        found = await forge(f"UPDATE audit_events SET {edit}")
        assert found.broken >= ROWS, name
    for seq in random.Random(7).sample(range(1, ROWS), 10):
        found = await forge("UPDATE audit_events SET reason = reason || '.' WHERE seq = :seq", seq=seq)
        assert (found.broken, found.problems[0].split(" (")[0]) == (1, f"row {seq}")


async def test_every_exchange_removal_and_cut_of_ten_thousand_rows_is_found(engine: AsyncEngine, forge: Forger) -> None:
    await write(engine, ROWS)
    await chain(engine)
    swap = """
        UPDATE audit_events a SET subject = b.subject, before = b.before, reason = b.reason, request_id = b.request_id,
                                  traceparent = b.traceparent, created_at = b.created_at
        FROM audit_events b WHERE (a.seq, b.seq) IN ((:x, :y), (:y, :x))
    """
    move = "UPDATE audit_events SET seq = CASE seq WHEN :x THEN CAST(:y AS bigint) ELSE :x END WHERE seq IN (:x, :y)"
    source = random.Random(11)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DROP INDEX audit_events_chain")
        await connection.exec_driver_sql("CREATE INDEX audit_events_chain ON audit_events (tenant_id, seq)")
    for _ in range(8):
        x, y = source.sample(range(1, ROWS + 1), 2)
        for statement in (swap, move):
            assert (await forge(statement, x=x, y=y)).broken >= 2
        found = await forge("DELETE FROM audit_events WHERE seq = :x", x=x)
        assert f"row {x}" in str(found.problems)
        cut = await forge("DELETE FROM audit_events WHERE seq > :x", x=x)
        assert cut.problems == [f"rows {x + 1} to {ROWS}, the end of the chain, were cut off"]
    everything = await forge("DELETE FROM audit_events")
    assert not everything.ok
    assert not (await forge("DELETE FROM audit_heads")).ok
    assert not (await forge("UPDATE audit_heads SET seq = seq - 1")).ok
    every_second = await forge("DELETE FROM audit_events WHERE seq % 2 = 0")
    assert every_second.broken >= ROWS / 2


async def test_a_chain_written_anew_with_its_head_is_found_by_a_head_that_was_kept(engine: AsyncEngine) -> None:
    await write(engine, 20)
    await chain(engine)
    async with engine.connect() as connection:
        (kept,) = await recent_heads(connection, age_s=60)
    await write(engine, 5)
    await chain(engine)
    assert (await verify(engine, kept=kept)).ok
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL session_replication_role = replica"))
        await connection.execute(text("UPDATE audit_events SET seq = NULL, hash = NULL, actor = 'nobody'"))
        await connection.execute(text("DELETE FROM audit_heads"))
        assert await chain_audit(connection) == 25
    assert (await verify(engine)).ok
    assert (await verify(engine, kept=kept)).problems == [
        "the chain does not go through the head that was kept (row 20)"
    ]


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("next_state", "retryable", "replays", "action"),
    [
        ("retry_scheduled", True, 0, "delivery.retry_scheduled"),
        ("failed", True, 0, "delivery.retry_exhausted"),
        ("failed", False, 0, None),
        ("delivered", False, 0, None),
        ("delivered", False, 1, "delivery.reprocess_succeeded"),
        ("failed", True, 1, "delivery.reprocess_failed"),
        ("failed", False, 1, "delivery.reprocess_failed"),
        ("retry_scheduled", True, 1, "delivery.retry_scheduled"),
    ],
)
async def test_changes_of_state_are_audited(
    engine: AsyncEngine, next_state: str, retryable: bool, replays: int, action: str | None
) -> None:
    delivery = await make_delivery(engine, "delivering", replays=replays)
    await rows(engine, "UPDATE events SET traceparent = '00-t'")
    good = next_state == "delivered"
    outcome = "delivered" if good else "transient" if retryable else "definite"
    status, failure = (200, None) if good else (503, "http_status")
    result = Settled(
        delivery.id, 1, next_state, 5.0, outcome, failure, retryable, status, None if good else "no", None, 3
    )
    async with engine.begin() as connection:
        assert await record_if_delivering(connection, [result], worker="w")
        assert not await record_if_delivering(connection, [result], worker="w")
        found = await list_audit(connection, "default", request_id=delivery.request_id)
    if action is None:
        assert found == []
        return
    (row,) = found
    assert (row["action"], row["subject"], row["actor"], row["traceparent"]) == (
        action,
        str(delivery.id),
        "homing",
        "00-t",
    )
    assert row["before"] == {"state": "delivering", "attempts": 1}
    assert row["after"] == {"state": next_state, "attempts": 1, "class": failure, "status": status}


async def test_listing_is_newest_first_paged_and_of_one_tenant(engine: AsyncEngine) -> None:
    await write(engine, 5)
    await write(engine, 2, "other")
    async with engine.connect() as connection:
        page = await list_audit(connection, "default", limit=3)
        rest = await list_audit(connection, "default", before=UUID(str(page[-1]["id"])))
        with pytest.raises(InvalidInput):
            await list_audit(connection, "default", limit=0)
    reasons = [row["reason"] for row in [*page, *rest]]
    assert reasons == [f"receiver mended {n}" for n in (5, 4, 3, 2, 1)]
    assert {row["seq"] for row in page} == {None}


async def test_an_act_that_is_rolled_back_leaves_no_row(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await write_audit(connection, tenant_id="default", action="a.b", subject="s", actor="me", after={"x": 1})
        await connection.rollback()
    assert (await one(engine, "SELECT count(*) FROM audit_events")).count == 0
