"""A paused endpoint's deliveries wait without being used up, and none is forgotten when it goes on."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.attempts import Settled, park_if_endpoint_not_active, record_if_delivering, start_if_published
from app.endpoints import pause_endpoint, resume_endpoint
from app.errors import Conflict, NotFound
from tests.factories import make_delivery, make_endpoint, one, rows

WHO: dict[str, Any] = {"tenant_id": "default", "actor": "me", "reason": "maintenance"}


async def pause(engine: AsyncEngine, endpoint_id: UUID, **changes: Any) -> None:
    async with engine.begin() as connection:
        await pause_endpoint(connection, endpoint_id=endpoint_id, **(WHO | changes))


async def resume(engine: AsyncEngine, endpoint_id: UUID, **changes: Any) -> int:
    async with engine.begin() as connection:
        return await resume_endpoint(connection, endpoint_id=endpoint_id, **(WHO | changes))


async def park(engine: AsyncEngine, tickets: list[tuple[UUID, int]]) -> int:
    async with engine.begin() as connection:
        return await park_if_endpoint_not_active(connection, tickets)


@pytest.mark.parametrize("state", ["pending", "retry_scheduled", "replayed"])
async def test_paused_endpoints_deliveries_wait_and_go_on_with_the_attempts_they_had(
    engine: AsyncEngine, state: str
) -> None:
    delivery = await make_delivery(engine, state)
    before = (await one(engine, "SELECT attempts FROM deliveries")).attempts
    await pause(engine, delivery.endpoint_id)
    assert await park(engine, [delivery.ticket]) == 1
    parked = await one(engine, "SELECT state, attempts, due_at = 'infinity', lease_owner FROM deliveries")
    assert parked == (state, before, True, None)
    assert await resume(engine, delivery.endpoint_id) == 1
    assert await one(engine, "SELECT state, attempts, due_at <= now() FROM deliveries") == (state, before, True)


async def test_resume_frees_only_its_own_endpoints_deliveries(engine: AsyncEngine) -> None:
    ours, theirs = await make_delivery(engine), await make_delivery(engine)
    for delivery in (ours, theirs):
        await pause(engine, delivery.endpoint_id)
    assert await park(engine, [ours.ticket, theirs.ticket]) == 2
    assert await resume(engine, ours.endpoint_id) == 1
    assert (await one(engine, "SELECT id FROM deliveries WHERE due_at = 'infinity'")).id == theirs.id


async def test_resume_leaves_the_schedule_of_what_was_not_parked(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "retry_scheduled", due_in_s=3600)
    await pause(engine, delivery.endpoint_id)
    assert await resume(engine, delivery.endpoint_id) == 0
    assert (await one(engine, "SELECT due_at > now() + interval '50 min' AS later FROM deliveries")).later


async def test_park_and_resume_at_once_leave_nothing_parked(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine)
    for _ in range(60):
        await pause(engine, delivery.endpoint_id)
        await asyncio.gather(park(engine, [delivery.ticket]), resume(engine, delivery.endpoint_id))
        assert await rows(engine, "SELECT FROM deliveries WHERE due_at = 'infinity'") == []


async def test_refused_start_and_park_at_once_with_resume_leave_nothing_parked(engine: AsyncEngine) -> None:
    """As a worker does: start, and in the same transaction park what was refused."""
    made = [await make_delivery(engine, endpoint_id=await make_endpoint(engine)) for _ in range(3)]
    tickets = [d.ticket for d in made]

    async def work() -> None:
        async with engine.begin() as connection:
            started = await start_if_published(connection, tickets, worker="w", lease_s=20)
            begun = {(s.delivery_id, s.generation) for s in started}
            await park_if_endpoint_not_active(connection, [t for t in tickets if t not in begun])

    for _ in range(20):
        for delivery in made:
            await pause(engine, delivery.endpoint_id)
        await asyncio.gather(work(), *(resume(engine, d.endpoint_id) for d in made), work())
        assert await rows(engine, "SELECT FROM deliveries WHERE due_at = 'infinity'") == []
        await rows(engine, "UPDATE deliveries SET state = 'pending', attempts = 0")


@pytest.mark.parametrize("act", [pause, resume])
async def test_unknown_endpoint_is_not_found(engine: AsyncEngine, act: Any) -> None:
    with pytest.raises(NotFound):
        await act(engine, uuid4())


@pytest.mark.parametrize("act", [pause, resume])
async def test_another_tenants_endpoint_is_not_found(engine: AsyncEngine, act: Any) -> None:
    endpoint_id = await make_endpoint(engine)
    with pytest.raises(NotFound):
        await act(engine, endpoint_id, tenant_id="other")


@pytest.mark.parametrize(
    ("act", "status"),
    [(pause, "paused"), (pause, "disabled"), (pause, "archived"), (resume, "active"), (resume, "archived")],
)
async def test_move_that_the_status_forbids_is_a_conflict(engine: AsyncEngine, act: Any, status: str) -> None:
    endpoint_id = await make_endpoint(engine, status=status)
    with pytest.raises(Conflict, match=status):
        await act(engine, endpoint_id)
    assert await rows(engine, "SELECT FROM audit_events") == []


async def test_pauses_at_once_succeed_once(engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    results = await asyncio.gather(*(pause(engine, endpoint_id) for _ in range(8)), return_exceptions=True)
    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 7
    assert (await one(engine, "SELECT count(*) FROM audit_events")).count == 1


async def test_pause_and_resume_are_audited_and_raise_the_version(engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    await pause(engine, endpoint_id)
    await resume(engine, endpoint_id)
    audit = await rows(engine, "SELECT action, subject, before, after, actor, reason FROM audit_events ORDER BY id")
    assert [tuple(row) for row in audit] == [
        ("endpoint.paused", str(endpoint_id), {"status": "active"}, {"status": "paused"}, "me", "maintenance"),
        ("endpoint.active", str(endpoint_id), {"status": "paused"}, {"status": "active"}, "me", "maintenance"),
    ]
    assert (await one(engine, "SELECT version FROM endpoints")).version == 3


async def test_several_gone_answers_disable_the_endpoint_once_and_audit_it_once(engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    made = [await make_delivery(engine, "delivering", endpoint_id=endpoint_id) for _ in range(8)]

    async def record(n: int) -> None:
        result = Settled(
            *(made[n].id, 1, "failed", 0.0, "gone", "gone", False, 410, "gone", None, 5), disable_endpoint=True
        )
        async with engine.begin() as connection:
            await record_if_delivering(connection, [result], worker="w")

    await asyncio.gather(*(record(n) for n in range(8)))
    assert await one(engine, "SELECT status, version FROM endpoints") == ("disabled", 2)
    audit = await one(engine, "SELECT action, subject, actor, request_id FROM audit_events")
    assert audit[:3] == ("endpoint.disabled", str(endpoint_id), "homing")
    assert audit.request_id in {delivery.request_id for delivery in made}


async def test_stale_gone_answer_disables_nothing(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "delivering")
    result = Settled(
        *(delivery.id, 0, "failed", 0.0, "gone", "gone", False, 410, "gone", None, 5), disable_endpoint=True
    )
    async with engine.begin() as connection:
        assert await record_if_delivering(connection, [result], worker="w") == set()
    assert (await one(engine, "SELECT status FROM endpoints")).status == "active"


async def test_resumed_after_gone_delivers_what_waited(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, endpoint_id=await make_endpoint(engine, status="disabled"))
    assert await park(engine, [delivery.ticket]) == 1
    assert await resume(engine, delivery.endpoint_id) == 1
