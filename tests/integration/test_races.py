"""Two real sessions that want the same row: exactly one wins, whoever is first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.attempts import Settled, record_if_delivering, start_if_published
from app.claims import claim_due
from app.dead_letters import file_if_failed
from app.replays import carry_out_if_requested, request_replay
from tests.factories import MadeDelivery, make_delivery, make_endpoint, one, rows, state_of

ROUNDS = 20
Act = Callable[[AsyncConnection], Awaitable[Any]]


async def together(engine: AsyncEngine, *acts: Act) -> list[Any]:
    """Run acts at the same time, each in a transaction of its own whose connection is open already."""
    ready = asyncio.Barrier(len(acts))

    async def run(act: Act) -> Any:
        async with engine.begin() as connection:
            await ready.wait()
            return await act(connection)

    return await asyncio.gather(*(run(act) for act in acts))


async def one_after_another(engine: AsyncEngine, first: Act, second: Act) -> tuple[Any, Any]:
    """`second` begins while `first` holds its locks, and goes on when `first` commits."""
    async with engine.connect() as holder:
        answer = await first(holder)
        waiting = asyncio.create_task(together(engine, second))
        async with asyncio.timeout(10):
            while not waiting.done() and not await rows(engine, "SELECT FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.005)
        await holder.commit()
    return answer, (await waiting)[0]


def start(delivery: MadeDelivery) -> Act:
    async def act(connection: AsyncConnection) -> int:
        return len(await start_if_published(connection, [delivery.ticket], worker="w", lease_s=20))

    return act


def record(delivery: MadeDelivery) -> Act:
    result = Settled(delivery.id, delivery.generation, "delivered", 0.0, "delivered", None, False, 200, None, None, 5)

    async def act(connection: AsyncConnection) -> int:
        return len(await record_if_delivering(connection, [result], worker="w"))

    return act


async def claim(connection: AsyncConnection) -> int:
    claimed, _ = await claim_due(connection, limit=10, owner="p", lease_s=20, quarantine_after=5)
    return len(claimed)


def file(delivery: MadeDelivery) -> Act:
    async def act(connection: AsyncConnection) -> int:
        return await file_if_failed(connection, [delivery.ticket])

    return act


def carry_out(replay_id: UUID) -> Act:
    async def act(connection: AsyncConnection) -> int | None:
        return await carry_out_if_requested(connection, replay_id, 1)

    return act


async def requested(engine: AsyncEngine, delivery: MadeDelivery) -> UUID:
    async with engine.begin() as connection:
        answer = await request_replay(
            connection, tenant_id="default", request_id=delivery.request_id, reason="because", actor="me"
        )
    await rows(engine, "UPDATE replays SET generation = 1")
    assert answer.replay_id is not None
    return answer.replay_id


async def test_exactly_one_of_several_starts_wins(engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    for _ in range(ROUNDS):
        delivery = await make_delivery(engine, endpoint_id=endpoint_id)
        assert sorted(await together(engine, *[start(delivery)] * 4)) == [0, 0, 0, 1]
    assert (await one(engine, "SELECT max(attempts) FROM deliveries")).max == 1


async def test_record_and_expiry_leave_one_attempt_and_one_winner(engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    for _ in range(ROUNDS):
        delivery = await make_delivery(engine, "delivering", endpoint_id=endpoint_id, due_in_s=-1)
        recorded, claimed = await together(engine, record(delivery), claim)
        assert recorded + claimed == 1
        expected = ("delivered", "delivered") if recorded else ("retry_scheduled", "unknown")
        outcome = await one(engine, "SELECT outcome FROM delivery_attempts WHERE delivery_id = :id", id=delivery.id)
        assert (await state_of(engine, delivery), outcome.outcome) == expected


async def test_record_that_waits_for_an_expiry_writes_nothing(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "delivering", due_in_s=-1)
    assert await one_after_another(engine, claim, record(delivery)) == (1, 0)
    assert (await one(engine, "SELECT outcome FROM delivery_attempts")).outcome == "unknown"


async def test_expiry_does_not_wait_for_a_record_under_way(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "delivering", due_in_s=-1)
    assert await one_after_another(engine, record(delivery), claim) == (1, 0)
    assert (await one(engine, "SELECT outcome FROM delivery_attempts")).outcome == "delivered"


async def test_same_result_recorded_twice_at_once_is_written_once(engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    for _ in range(ROUNDS):
        delivery = await make_delivery(engine, "delivering", endpoint_id=endpoint_id)
        assert sorted(await together(engine, record(delivery), record(delivery))) == [0, 1]


async def test_pollers_that_claim_at_once_never_share_a_delivery(engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    for _ in range(ROUNDS):
        await make_delivery(engine, endpoint_id=endpoint_id, due_in_s=-1)
    assert sum(await together(engine, claim, claim, claim)) == ROUNDS
    assert (await one(engine, "SELECT min(generation), max(generation) FROM deliveries")) == (2, 2)


async def test_replay_carried_out_twice_at_once_counts_once(engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    for _ in range(ROUNDS):
        delivery = await make_delivery(engine, "dead_lettered", endpoint_id=endpoint_id)
        replay = carry_out(await requested(engine, delivery))
        assert sorted(await together(engine, replay, replay), key=str) == [1, None]
    assert (await one(engine, "SELECT min(replays), max(replays) FROM deliveries")) == (1, 1)


async def test_filing_and_replay_at_once_leave_no_open_letter(engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    for _ in range(ROUNDS):
        delivery = await make_delivery(engine, "failed", endpoint_id=endpoint_id)
        replay_id = await requested(engine, delivery)
        _, replayed = await together(engine, file(delivery), carry_out(replay_id))
        assert (replayed, await state_of(engine, delivery)) == (1, "replayed")
        letters = await rows(engine, "SELECT status FROM dead_letters WHERE delivery_id = :id", id=delivery.id)
        assert {letter.status for letter in letters} <= {"replayed"}


async def test_replay_that_waits_for_the_filing_takes_its_letter_along(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "failed")
    replay_id = await requested(engine, delivery)
    assert await one_after_another(engine, file(delivery), carry_out(replay_id)) == (1, 1)
    assert (await one(engine, "SELECT status FROM dead_letters")).status == "replayed"


async def test_replay_that_waits_for_a_claim_of_the_failed_delivery_is_carried_out(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "failed", due_in_s=-1)
    replay_id = await requested(engine, delivery)
    assert await one_after_another(engine, claim, carry_out(replay_id)) == (1, 1)
    assert await state_of(engine, delivery) == "replayed"


async def test_filing_that_waits_for_a_replay_files_nothing(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "failed")
    replay_id = await requested(engine, delivery)
    assert await one_after_another(engine, carry_out(replay_id), file(delivery)) == (1, 0)
    assert await rows(engine, "SELECT FROM dead_letters") == []


async def test_chunks_that_overlap_in_opposite_order_start_each_delivery_once(engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    made = [await make_delivery(engine, endpoint_id=endpoint_id) for _ in range(40)]
    tickets = [d.ticket for d in made]

    def start_all(order: list[tuple[UUID, int]]) -> Act:
        async def act(connection: AsyncConnection) -> int:
            return len(await start_if_published(connection, order, worker="w", lease_s=20))

        return act

    assert sum(await together(engine, start_all(tickets), start_all(tickets[::-1]))) == 40


async def test_nothing_to_start_and_nothing_to_record_write_nothing(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        assert await start_if_published(connection, [], worker="w", lease_s=20) == []
        assert await record_if_delivering(connection, [], worker="w") == set()
