"""An endpoint that holds requests is marked, and what is claimed for it says so until the mark ends."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.attempts import Settled, record_if_delivering
from app.claims import claim_due
from tests.factories import make_delivery, make_outbox_event, one, rows, take


async def record(engine: AsyncEngine, delivery_id: object, generation: int, failure_class: str) -> None:
    settled = Settled(
        delivery_id=delivery_id,  # type: ignore[arg-type]
        generation=generation,
        next_state="retry_scheduled",
        delay_s=0.0,
        outcome="transient",
        failure_class=failure_class,
        retryable=True,
        http_status=None,
        error="x",
        response_excerpt=None,
        duration_ms=1,
    )
    async with engine.begin() as connection:
        assert await record_if_delivering(connection, [settled], worker="w")


@pytest.mark.parametrize(
    ("failure_class", "slow"),
    [("timeout", True), ("connect_timeout", True), ("own_fault", True), ("http_status", False)],
)
async def test_time_out_marks_the_endpoint_and_its_claims(engine: AsyncEngine, failure_class: str, slow: bool) -> None:
    delivery = await make_delivery(engine, "delivering")
    await record(engine, delivery.id, delivery.generation, failure_class)
    async with engine.begin() as connection:
        (claimed,), _ = await claim_due(connection, limit=10, owner="o", lease_s=5, quarantine_after=5)
    assert claimed.slow is slow
    await make_outbox_event(engine)
    (fresh,) = (await take(engine)).claimed
    assert fresh.slow is slow


async def test_mark_ends_by_itself(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "delivering")
    await record(engine, delivery.id, delivery.generation, "timeout")
    assert (await one(engine, "SELECT slow_until > now() + interval '20 s' AS marked FROM endpoints")).marked
    await rows(engine, "UPDATE endpoints SET slow_until = now() - interval '1 s'")
    async with engine.begin() as connection:
        (claimed,), _ = await claim_due(connection, limit=10, owner="o", lease_s=5, quarantine_after=5)
    assert not claimed.slow
