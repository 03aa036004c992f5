"""The same (tenant, idempotency key) never makes a second set of deliveries, whoever writes and takes at once."""

from __future__ import annotations

import asyncio

from sqlalchemy.ext.asyncio import AsyncEngine

from app.intake import Intake
from tests.factories import make_endpoint, make_outbox_event, make_tenant, one, rows, take, take_all


async def test_one_key_makes_one_set_of_deliveries_under_concurrent_writers_and_takers(engine: AsyncEngine) -> None:
    for _ in range(2):
        await make_endpoint(engine)
    written = asyncio.Event()

    async def write() -> None:
        for _ in range(4):
            await make_outbox_event(engine, idempotency_key="order-1")

    async def keep_taking(owner: str) -> Intake:
        while not written.is_set():
            await take(engine, 7, owner=owner)
        return await take_all(engine, 7, owner)

    takers = [asyncio.create_task(keep_taking(f"p{n}")) for n in range(4)]
    await asyncio.gather(*(write() for _ in range(50)))
    written.set()
    await asyncio.gather(*takers)
    events = await rows(engine, "SELECT id, duplicate_of FROM events")
    first = [e.id for e in events if e.duplicate_of is None]
    assert (len(events), len(first)) == (200, 1)
    assert {e.duplicate_of for e in events} == {None, first[0]}
    assert (await one(engine, "SELECT count(*), count(DISTINCT event_id) FROM deliveries")) == (2, 1)


async def test_takers_that_meet_the_same_keys_in_opposite_order_both_finish(engine: AsyncEngine) -> None:
    await make_endpoint(engine)
    for _ in range(4):
        for order in (range(15), reversed(range(15))):
            for n in order:
                await make_outbox_event(engine, idempotency_key=f"k{n}")
        takes = await asyncio.gather(*(take(engine, 15, owner=f"p{n}") for n in range(2)))
        assert [t.taken for t in takes] == [15, 15]
    assert (await one(engine, "SELECT count(*) FROM deliveries")).count == 15


async def test_same_key_within_one_batch_counts_once(engine: AsyncEngine) -> None:
    await make_endpoint(engine)
    for _ in range(3):
        await make_outbox_event(engine, idempotency_key="k")
    intake = await take(engine)
    assert (intake.taken, intake.duplicates, intake.deliveries) == (3, 2, 1)


async def test_same_key_in_two_tenants_is_independent(engine: AsyncEngine) -> None:
    await make_tenant(engine, "other")
    for tenant_id in ("default", "other"):
        await make_endpoint(engine, tenant_id=tenant_id)
        await make_outbox_event(engine, idempotency_key="k", tenant_id=tenant_id)
    assert (await take(engine)).deliveries == 2


async def test_key_of_a_row_set_aside_is_not_used_up(engine: AsyncEngine) -> None:
    await make_endpoint(engine)
    await make_outbox_event(engine, idempotency_key="k", event_type="bad type")
    assert (await take(engine)).rejected == 1
    await make_outbox_event(engine, idempotency_key="k")
    assert (await take(engine)).deliveries == 1
