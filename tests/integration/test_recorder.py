"""Group commit of results: few statements, nobody goes on before the commit, and nobody suffers for another's result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.attempts import Settled
from app.db import make_engine
from tests.conftest import Servers
from tests.factories import MadeDelivery, make_delivery, make_endpoint, one, rows, state_of
from workers.metrics import WorkerMetrics
from workers.recorder import Recorder

Make = Callable[..., Recorder]


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics()


@pytest.fixture
async def make_recorder(database_url: str, metrics: WorkerMetrics) -> AsyncIterator[Make]:
    engine = make_engine(database_url, name="recorder", pool_size=2)
    made: list[Recorder] = []

    def make(give_up_after_s: float = 10) -> Recorder:
        made.append(Recorder(engine, metrics, worker="w", give_up_after_s=give_up_after_s))
        return made[-1]

    yield make
    for recorder in made:
        await recorder.close()
    await engine.dispose()


def delivered(delivery: MadeDelivery, **changes: Any) -> Settled:
    values: dict[str, Any] = {
        "next_state": "delivered",
        "delay_s": 0.0,
        "outcome": "delivered",
        "failure_class": None,
        "retryable": False,
        "http_status": 200,
        "error": None,
        "response_excerpt": "ok",
        "duration_ms": 5,
    }
    return Settled(delivery_id=delivery.id, generation=delivery.generation, **(values | changes))


async def deliveries(engine: AsyncEngine, count: int) -> list[MadeDelivery]:
    endpoint_id = await make_endpoint(engine)
    return [await make_delivery(engine, "delivering", endpoint_id=endpoint_id) for _ in range(count)]


def sample(metrics: WorkerMetrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


async def test_many_results_at_once_are_written_by_few_statements(
    engine: AsyncEngine, make_recorder: Make, metrics: WorkerMetrics
) -> None:
    made = await deliveries(engine, 200)
    recorder = make_recorder()
    assert all(await asyncio.gather(*(recorder.record(delivered(d)) for d in made)))
    assert (await one(engine, "SELECT count(*) FROM deliveries WHERE state = 'delivered'")).count == 200
    assert sample(metrics, "homing_flush_results_sum") == 200
    assert sample(metrics, "homing_flush_results_count") <= 5


async def test_waiter_goes_on_only_after_the_commit(engine: AsyncEngine, make_recorder: Make) -> None:
    (delivery,) = await deliveries(engine, 1)
    recorder = make_recorder()
    async with engine.connect() as other:
        await other.exec_driver_sql("SELECT FROM deliveries FOR UPDATE")
        recording = asyncio.create_task(recorder.record(delivered(delivery)))
        while not await rows(engine, "SELECT FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.005)
        assert not recording.done()
        await other.rollback()
    assert await recording
    assert await state_of(engine, delivery) == "delivered"


async def test_stale_result_is_reported_as_not_written(engine: AsyncEngine, make_recorder: Make) -> None:
    stale, good = await deliveries(engine, 2)
    await rows(engine, "UPDATE deliveries SET generation = 2 WHERE id = :id", id=stale.id)
    recorder = make_recorder()
    assert await asyncio.gather(recorder.record(delivered(stale)), recorder.record(delivered(good))) == [False, True]


async def test_same_result_twice_in_one_flush_is_written_once(engine: AsyncEngine, make_recorder: Make) -> None:
    (delivery,) = await deliveries(engine, 1)
    recorder = make_recorder()
    answers = await asyncio.gather(*(recorder.record(delivered(delivery)) for _ in range(2)))
    assert sorted(answers) == [False, True]
    assert (await one(engine, "SELECT count(*) FROM delivery_attempts")).count == 1


async def test_result_that_the_database_refuses_fails_alone(engine: AsyncEngine, make_recorder: Make) -> None:
    made = await deliveries(engine, 20)
    recorder = make_recorder()
    bad = delivered(made[7], outcome="splendid")
    results = [delivered(d) if d != made[7] else bad for d in made]
    answers = await asyncio.gather(*(recorder.record(r) for r in results), return_exceptions=True)
    assert isinstance(answers[7], DBAPIError)
    assert answers[:7] + answers[8:] == [True] * 19
    assert await state_of(engine, made[7]) == "delivering"
    assert recorder.alive


@pytest.mark.parametrize("text", ["a\x00b", "\ud800"], ids=["NUL", "lone surrogate"])
async def test_result_whose_text_cannot_be_stored_is_recorded_without_it(
    engine: AsyncEngine, make_recorder: Make, text: str
) -> None:
    made = await deliveries(engine, 5)
    recorder = make_recorder()
    results = [delivered(d, error=text if d == made[2] else "fine", response_excerpt=text) for d in made]
    assert await asyncio.gather(*(recorder.record(r) for r in results)) == [True] * 5
    attempt = await one(
        engine, "SELECT outcome, error, response_excerpt FROM delivery_attempts WHERE delivery_id = :id", id=made[2].id
    )
    assert attempt == ("delivered", "the text of this error could not be stored", None)


async def test_results_survive_a_backend_that_is_terminated_midway(engine: AsyncEngine, make_recorder: Make) -> None:
    made = await deliveries(engine, 30)
    recorder = make_recorder()
    async with engine.connect() as other:
        await other.exec_driver_sql("SELECT FROM deliveries FOR UPDATE")
        recording = [asyncio.create_task(recorder.record(delivered(d))) for d in made]
        while not await rows(engine, "SELECT FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.005)
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'homing-recorder'"
        assert await rows(engine, kill)
        await other.rollback()
    assert await asyncio.gather(*recording) == [True] * 30
    assert (await one(engine, "SELECT count(*), max(generation) FROM delivery_attempts")) == (30, 1)


async def test_recorder_gives_up_after_its_time_with_the_error_and_goes_on(
    engine: AsyncEngine, make_recorder: Make, servers: Servers, database_url: str
) -> None:
    first, second = await deliveries(engine, 2)
    recorder = make_recorder(give_up_after_s=0.2)
    name = database_url.rsplit("/", 1)[1]
    with psycopg.connect(servers.running.database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        with pytest.raises(DBAPIError):
            await recorder.record(delivered(first))
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert await recorder.record(delivered(second))
    assert await state_of(engine, first) == "delivering"


async def test_close_cancels_whoever_still_waits(engine: AsyncEngine, make_recorder: Make) -> None:
    (delivery,) = await deliveries(engine, 1)
    recorder = make_recorder()
    waiting = asyncio.create_task(recorder.record(delivered(delivery)))
    async with engine.connect() as other:
        await other.exec_driver_sql("SELECT FROM deliveries FOR UPDATE")
        while not await rows(engine, "SELECT FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.005)
        await recorder.close()
        await other.rollback()
    done, _ = await asyncio.wait({waiting}, timeout=2)
    waiting.cancel()
    assert done
