"""The wall behind the statements: what the role that the API's transactions run as can see and do at all."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.surroundings import Surroundings
from tests.factories import make_delivery, one, rows

TABLES = (
    *(
        "endpoints",
        "endpoint_secrets",
        "events",
        "deliveries",
        "delivery_attempts",
        "dead_letters",
        "replays",
        "replay_items",
    ),
    *("audit_events", "api_keys", "idempotency_keys"),
)


async def test_role_of_the_api_sees_and_writes_one_tenants_rows_only(
    surroundings: Surroundings, stranger: dict[str, str]
) -> None:
    for table in TABLES:
        async with surroundings.transaction("default") as connection:
            of_mine = text(f"SELECT count(*) FROM (SELECT 1 FROM {table}) AS t")
            seen = (await connection.execute(of_mine)).scalar_one()
            if table not in ("api_keys", "audit_events"):
                assert seen == 0, table
    for view in ("outbox_of_tenant", "outbox_rejected_of_tenant"):
        async with surroundings.transaction("default") as connection:
            assert (await connection.execute(text(f"SELECT count(*) FROM {view}"))).scalar_one() == 0
    for statement in (
        "INSERT INTO outbox_of_tenant (tenant_id, event_type, payload) VALUES ('other', 'a.b', '1')",
        "INSERT INTO endpoints (tenant_id, url) VALUES ('other', 'https://x')",
        "INSERT INTO tenants (id, name) VALUES ('mine', '')",
        "INSERT INTO audit_events (tenant_id, action, subject, actor) VALUES ('other', 'a', 's', 'x')",
        f"INSERT INTO endpoint_secrets (endpoint_id, key_id, sealed) VALUES ('{stranger['endpoint_id']}', 'k', '')",
        *("SELECT sealed FROM endpoint_secrets", "SELECT hash FROM api_keys", "SELECT * FROM outbox_events"),
        *("DELETE FROM deliveries", "DELETE FROM audit_events", "UPDATE deliveries SET state = 'delivered'"),
        *(
            "UPDATE dead_letters SET status = 'resolved'",
            "SELECT * FROM deliveries_default",
            "SELECT * FROM delivery_status",
        ),
    ):
        with pytest.raises(DBAPIError, match=r"permission denied|row-level security|check option"):
            async with surroundings.transaction("default") as connection:
                await connection.execute(text(statement))


async def test_tenant_and_role_end_with_the_transaction(surroundings: Surroundings) -> None:
    for _ in range(3):
        async with surroundings.transaction("default"):
            pass
    row = await one(surroundings.engine, "SELECT current_user AS who, current_setting('homing.tenant', true) AS tenant")
    assert row.who != "homing_api"
    assert not row.tenant


async def test_week_that_is_made_later_is_behind_the_wall_too(
    surroundings: Surroundings, engine: AsyncEngine, stranger: dict[str, str]
) -> None:
    await rows(engine, "SELECT homing_ensure_partitions(8)")
    await rows(
        engine,
        """
        INSERT INTO deliveries (id, tenant_id, event_id, endpoint_id)
        SELECT homing_uuid7_floor(now() + interval '7 weeks'), 'other', event_id, endpoint_id FROM deliveries LIMIT 1
        """,
    )
    async with surroundings.transaction("default") as connection:
        assert (await connection.execute(text("SELECT count(*) FROM deliveries"))).scalar_one() == 0


async def test_others_than_the_api_are_not_affected(engine: AsyncEngine) -> None:
    """A producer with INSERT alone still produces, and somebody's reporting role still reads."""
    role = f"homing_test_role_{uuid4().hex[:12]}"
    await make_delivery(engine)
    try:
        await rows(engine, f"CREATE ROLE {role}")
        await rows(engine, f"GRANT INSERT ON outbox_events TO {role}")
        await rows(engine, f"GRANT SELECT ON deliveries, delivery_status TO {role}")
        async with engine.begin() as connection:
            await connection.execute(text(f"SET LOCAL ROLE {role}"))
            await connection.execute(text("INSERT INTO outbox_events (event_type, payload) VALUES ('a.b', '1')"))
            for relation in ("deliveries", "delivery_status"):
                assert (await connection.execute(text(f"SELECT count(*) FROM {relation}"))).scalar_one() == 1
    finally:
        await rows(engine, f"DROP OWNED BY {role}")
        await rows(engine, f"DROP ROLE {role}")
