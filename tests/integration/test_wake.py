"""How an idle poller sleeps: woken by a commit, silent while nobody sleeps, one on duty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from time import monotonic

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.factories import make_outbox_event, rows
from workers.wake import CHANNEL, Sleeper

#: Far longer than a wake takes, far shorter than the test may.
SLOW_POLL_S = 30.0
Make = Callable[[], Sleeper]


@pytest.fixture
async def make_sleeper(database_url: str) -> AsyncIterator[Make]:
    made: list[Sleeper] = []

    def make() -> Sleeper:
        made.append(Sleeper(database_url))
        return made[-1]

    yield make
    for sleeper in made:
        await sleeper.close()


@pytest.fixture
async def listener(database_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(f"LISTEN {CHANNEL}")
        yield connection


async def heard(engine: AsyncEngine, listener: psycopg.AsyncConnection) -> int:
    """Notifications until a marker sent now; whatever was sent before has arrived by then."""
    await rows(engine, f"SELECT pg_notify('{CHANNEL}', 'marker')")
    count = 0
    async for notification in listener.notifies(timeout=10):
        if notification.payload == "marker":
            return count
        count += 1
    raise AssertionError("the marker did not arrive")


async def test_commit_wakes_a_sleeper_long_before_the_slow_poll(engine: AsyncEngine, make_sleeper: Make) -> None:
    sleeper = make_sleeper()
    assert await sleeper.arm()
    began = monotonic()
    sleeping = asyncio.create_task(sleeper.wait(SLOW_POLL_S))
    await make_outbox_event(engine)
    await sleeping
    assert monotonic() - began < SLOW_POLL_S / 3


async def test_commit_between_arming_and_waiting_wakes_too(engine: AsyncEngine, make_sleeper: Make) -> None:
    sleeper = make_sleeper()
    assert await sleeper.arm()
    await make_outbox_event(engine)
    async with asyncio.timeout(SLOW_POLL_S / 3):
        await sleeper.wait(SLOW_POLL_S)


async def test_sleep_ends_by_itself_when_nothing_is_committed(make_sleeper: Make) -> None:
    sleeper = make_sleeper()
    assert await sleeper.arm()
    await sleeper.wait(0.05)
    await sleeper.disarm()
    assert await sleeper.arm()


async def test_sleeper_can_be_interrupted_and_sleep_again(engine: AsyncEngine, make_sleeper: Make) -> None:
    sleeper = make_sleeper()
    for _ in range(3):
        assert await sleeper.arm()
        sleeping = asyncio.create_task(sleeper.wait(SLOW_POLL_S))
        await asyncio.wait({sleeping}, timeout=0.02)
        sleeping.cancel()
        await asyncio.gather(sleeping, return_exceptions=True)
        await sleeper.disarm()
    assert await sleeper.arm()
    await make_outbox_event(engine)
    async with asyncio.timeout(SLOW_POLL_S / 3):
        await sleeper.wait(SLOW_POLL_S)


async def test_nothing_is_notified_while_nobody_sleeps(
    engine: AsyncEngine, make_sleeper: Make, listener: psycopg.AsyncConnection
) -> None:
    sleeper = make_sleeper()
    await make_outbox_event(engine)
    assert await sleeper.arm()
    await sleeper.disarm()
    await make_outbox_event(engine)
    assert await heard(engine, listener) == 0


async def test_every_commit_while_somebody_sleeps_notifies(
    engine: AsyncEngine, make_sleeper: Make, listener: psycopg.AsyncConnection
) -> None:
    sleeper = make_sleeper()
    assert await sleeper.arm()
    for _ in range(3):
        await make_outbox_event(engine)
    assert await heard(engine, listener) == 3


async def test_rolled_back_insert_notifies_nobody(
    engine: AsyncEngine, make_sleeper: Make, listener: psycopg.AsyncConnection
) -> None:
    assert await make_sleeper().arm()
    async with engine.connect() as producer:
        await producer.execute(text("INSERT INTO outbox_events (event_type, payload) VALUES ('a.b', '{}')"))
        await producer.rollback()
    assert await heard(engine, listener) == 0


async def test_open_producer_transaction_keeps_a_poller_from_sleeping(engine: AsyncEngine, make_sleeper: Make) -> None:
    sleeper = make_sleeper()
    async with engine.connect() as producer:
        await producer.execute(text("INSERT INTO outbox_events (event_type, payload) VALUES ('a.b', '{}')"))
        assert not await sleeper.arm()
        assert sleeper.on_duty
        await producer.commit()
    assert await sleeper.arm()


async def test_only_one_of_several_pollers_is_on_duty_until_it_ends(make_sleeper: Make) -> None:
    first, second = make_sleeper(), make_sleeper()
    assert await first.arm()
    assert not await second.arm()
    assert (first.on_duty, second.on_duty) == (True, False)
    await first.disarm()
    assert not await second.arm()
    await first.close()
    async with asyncio.timeout(5):
        while not await second.arm():
            await asyncio.sleep(0.01)
    assert second.on_duty


async def test_lost_connection_is_survived_asleep_and_awake(engine: AsyncEngine, make_sleeper: Make) -> None:
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'homing-sleeper'"
    sleeper = make_sleeper()
    assert await sleeper.arm()
    sleeping = asyncio.create_task(sleeper.wait(SLOW_POLL_S))
    assert await rows(engine, kill)
    async with asyncio.timeout(SLOW_POLL_S / 3):
        await sleeping
    assert not sleeper.on_duty
    await sleeper.disarm()
    async with asyncio.timeout(5):
        while not await sleeper.arm():
            await asyncio.sleep(0.01)
    assert await rows(engine, kill)
    await sleeper.disarm()
    async with asyncio.timeout(5):
        while not await sleeper.arm():
            await asyncio.sleep(0.01)
    await make_outbox_event(engine)
    async with asyncio.timeout(SLOW_POLL_S / 3):
        await sleeper.wait(SLOW_POLL_S)


async def test_unreachable_database_only_means_that_it_cannot_be_armed() -> None:
    sleeper = Sleeper("postgresql://nobody@127.0.0.1:1/none")
    assert not await sleeper.arm()
    await sleeper.wait(0.01)
    await sleeper.disarm()
    await sleeper.close()
