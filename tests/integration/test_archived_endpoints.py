"""What waits for an endpoint that is archived is given up, fenced and audited, and kept as a dead letter."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.attempts import park_if_endpoint_not_active, start_if_published
from app.endpoint_changes import archive_endpoint
from app.endpoints import pause_endpoint
from tests.factories import everything, make_delivery, one, rows
from tests.pipeline import Pipeline, running_pipeline, until
from tests.receiver import Receiver, ok, status

WHO: dict[str, Any] = {"tenant_id": "default", "actor": "test", "reason": "customer left"}


async def archive(engine: AsyncEngine, endpoint_id: UUID) -> int:
    async with engine.begin() as connection:
        return await archive_endpoint(connection, endpoint_id=endpoint_id, if_match=None, **WHO)


async def park(engine: AsyncEngine, tickets: list[tuple[UUID, int]]) -> int:
    async with engine.begin() as connection:
        return await park_if_endpoint_not_active(connection, tickets)


@pytest.mark.parametrize(
    ("state", "action"),
    [
        ("pending", "delivery.given_up"),
        ("retry_scheduled", "delivery.given_up"),
        ("replayed", "delivery.reprocess_failed"),
    ],
)
async def test_a_ticket_for_an_archived_endpoint_fails_its_delivery_with_the_reason(
    engine: AsyncEngine, state: str, action: str
) -> None:
    delivery = await make_delivery(engine, state)
    await archive(engine, delivery.endpoint_id)
    assert await park(engine, [delivery.ticket]) == 1
    found = await one(engine, "SELECT state, last_class, due_at <= now() AS due, lease_owner FROM deliveries")
    assert found == ("failed", "endpoint_archived", True, None)
    row = await one(engine, "SELECT request_id FROM audit_events WHERE action = :action", action=action)
    assert row.request_id == delivery.request_id


@pytest.mark.parametrize("state", ["delivering", "delivered", "failed", "dead_lettered"])
async def test_what_does_not_wait_is_left_alone(engine: AsyncEngine, state: str) -> None:
    delivery = await make_delivery(engine, state)
    await archive(engine, delivery.endpoint_id)
    before = await everything(engine)
    assert await park(engine, [delivery.ticket]) == 0
    assert await everything(engine) == before


async def test_an_old_ticket_gives_nothing_up(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "pending", generation=3)
    await archive(engine, delivery.endpoint_id)
    before = await everything(engine)
    assert await park(engine, [(delivery.id, 2)]) == 0
    assert await everything(engine) == before


async def test_archiving_frees_what_is_held_back_and_counts_it_in_the_audit_trail(engine: AsyncEngine) -> None:
    held, other = await make_delivery(engine), await make_delivery(engine)
    for delivery in (held, other):
        async with engine.begin() as connection:
            await pause_endpoint(connection, endpoint_id=delivery.endpoint_id, **WHO)
    assert await park(engine, [held.ticket, other.ticket]) == 2
    assert await archive(engine, held.endpoint_id) == 1
    assert await archive(engine, held.endpoint_id) == 0, "twice is once"
    assert (await one(engine, "SELECT id FROM deliveries WHERE due_at = 'infinity'")).id == other.id
    row = await one(engine, "SELECT after FROM audit_events WHERE action = 'endpoint.archived'")
    assert row.after == {"status": "archived", "deliveries_given_up": 1}


async def test_archive_and_refused_start_at_once_leave_nothing_parked(engine: AsyncEngine) -> None:
    """Whichever comes first: a delivery is never out of the schedule for an endpoint that nobody can resume."""
    for _ in range(20):
        delivery = await make_delivery(engine)
        async with engine.begin() as connection:
            await pause_endpoint(connection, endpoint_id=delivery.endpoint_id, **WHO)

        async def refused(ticket: tuple[UUID, int] = delivery.ticket) -> None:
            async with engine.begin() as connection:
                assert await start_if_published(connection, [ticket], worker="w", lease_s=20) == []
                await park_if_endpoint_not_active(connection, [ticket])

        await asyncio.gather(refused(), archive(engine, delivery.endpoint_id))
    assert await rows(engine, "SELECT id FROM deliveries WHERE due_at = 'infinity'") == []


async def test_everything_that_waits_ends_in_the_dead_letters_and_nothing_is_sent(tmp_path: Path) -> None:
    async with (
        Receiver(status(503)) as weak,
        Receiver(ok) as paused,
        running_pipeline(tmp_path, workers=1) as pipeline,
    ):
        retrying = await pipeline.endpoint(weak.url, event_types=("a.retried",))
        held = await pipeline.endpoint(paused.url, event_types=("a.held",))
        async with pipeline.engine.begin() as connection:
            await pause_endpoint(connection, endpoint_id=held["id"], **WHO)
        await pipeline.publish(120, event_type="a.held", request_id="held")
        await pipeline.publish(10, event_type="a.retried", request_id="retried")
        await until(lambda: _count(pipeline, "due_at = 'infinity'", 120))
        await until(lambda: _count(pipeline, "state = 'retry_scheduled'", 10))
        for endpoint in (held, retrying):
            await archive(pipeline.engine, endpoint["id"])
        await pipeline.all_in("dead_lettered", 130)
        letters = await pipeline.rows(
            "SELECT request_id, count(*) AS n, min(failure_class) AS class, min(payload) AS payload FROM dead_letters"
            " WHERE status = 'open' AND failure_class = 'endpoint_archived' GROUP BY request_id ORDER BY 1"
        )
        assert [(row.request_id, row.n) for row in letters] == [("held", 120), ("retried", 10)]
        assert all('"n"' in row.payload for row in letters), "kept with what it would have sent"
        assert paused.requests == []

        await pipeline.replay("retried")
        await until(lambda: _items(pipeline, "failed", 10))
        await pipeline.all_in("dead_lettered", 130)


async def _count(pipeline: Pipeline, condition: str, count: int) -> bool:
    (row,) = await pipeline.rows(f"SELECT count(*) FROM deliveries WHERE {condition}")
    return bool(row.count == count)


async def _items(pipeline: Pipeline, state: str, count: int) -> bool:
    (row,) = await pipeline.rows("SELECT count(*) FROM replay_items WHERE state = :state", state=state)
    return bool(row.count == count)
