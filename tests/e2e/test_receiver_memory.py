"""The pipeline against receivers with the verifier: work that is done once, and copies that are told apart."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import psycopg
import pytest

from app.verifier import PostgresMemory, ProcessMemory, Reason, Turn, Verification, Verifier
from tests.pipeline import Pipeline, started_pipeline
from tests.receiver import Behaviour, Connection, Receiver, Request, ok, reset, status


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with started_pipeline(tmp_path_factory.mktemp("receivers"), workers=1) as pipeline:
        with psycopg.connect(pipeline.running.database_url) as connection:
            documented = re.search(r"CREATE TABLE.*\(seen_at\);", str(PostgresMemory.__doc__), re.DOTALL)
            assert documented
            connection.execute(documented[0])  # type: ignore[call-overload]
            connection.execute("CREATE TABLE work (namespace text, event_id text)")
        yield pipeline


@pytest.fixture
async def pipeline(shared: Pipeline) -> Pipeline:
    await shared.clear()
    with psycopg.connect(shared.running.database_url) as connection:
        connection.execute("TRUNCATE work, webhook_seen")
    return shared


class Working:
    """Verifies, works once in a transaction of Postgres, and then answers what the test scripted."""

    def __init__(self, url: str, namespace: str, first: Behaviour, *, crash_before_commit: int = 0) -> None:
        self.url, self.namespace, self.first = url, namespace, first
        self.crashes = crash_before_commit
        self.verifier: Verifier | None = None
        self.found: list[Verification] = []
        self.turns: list[Turn] = []

    async def __call__(self, request: Request, connection: Connection) -> None:
        assert self.verifier is not None
        result = self.verifier.verify(request.raw_headers, request.body)
        self.found.append(result)
        if not result:
            await status(401)(request, connection)
            return
        turn = await asyncio.to_thread(self.work_once, result.event_id)
        self.turns.append(turn)
        if self.crashes:
            self.crashes -= 1
            await reset(request, connection)
        elif turn is Turn.FIRST:
            await self.first(request, connection)
        else:
            await ok(request, connection)

    def work_once(self, event_id: str) -> Turn:
        with psycopg.connect(self.url) as connection:
            turn = PostgresMemory(connection, self.namespace).begin(event_id)
            if turn is Turn.FIRST:
                connection.execute("INSERT INTO work VALUES (%s, %s)", (self.namespace, event_id))
            if self.crashes:
                connection.rollback()  # what PostgreSQL does when its client dies
            return turn


async def attempts(pipeline: Pipeline) -> list[tuple[int, str, int | None]]:
    rows = await pipeline.rows("SELECT number, outcome, http_status FROM delivery_attempts ORDER BY generation")
    return [tuple(row) for row in rows]


async def works(pipeline: Pipeline) -> list[tuple[str, str]]:
    return [tuple(row) for row in await pipeline.rows("SELECT namespace, event_id FROM work ORDER BY namespace")]


@pytest.mark.parametrize("scheme", ["standard", "hex"])
async def test_work_done_before_a_503_is_not_done_again_when_the_retry_comes(pipeline: Pipeline, scheme: str) -> None:
    behaviour = Working(pipeline.running.database_url, "shop", status(503))
    async with Receiver(behaviour) as receiver:
        endpoint = await pipeline.endpoint(receiver.url, scheme=scheme)
        behaviour.verifier = Verifier(endpoint["secret"], scheme=scheme)
        await pipeline.publish()
        await pipeline.all_in("delivered", 1)
        assert await attempts(pipeline) == [(1, "transient", 503), (2, "delivered", 200)]
        assert behaviour.turns == [Turn.FIRST, Turn.DONE]
        first, second = behaviour.found
        assert first.reason is second.reason is Reason.OK
        assert await works(pipeline) == [("shop", first.event_id)] == [("shop", second.event_id)]


async def test_event_is_not_lost_by_a_receiver_that_crashes_before_its_work(pipeline: Pipeline) -> None:
    behaviour = Working(pipeline.running.database_url, "shop", ok, crash_before_commit=1)
    async with Receiver(behaviour) as receiver:
        endpoint = await pipeline.endpoint(receiver.url)
        behaviour.verifier = Verifier(endpoint["secret"])
        await pipeline.publish()
        await pipeline.all_in("delivered", 1)
        assert [(number, outcome) for number, outcome, _ in await attempts(pipeline)] == [
            (1, "transient"),
            (2, "delivered"),
        ]
        assert behaviour.turns == [Turn.FIRST, Turn.FIRST]
        assert len(await works(pipeline)) == 1


async def test_both_endpoints_of_one_event_do_their_work_although_the_id_is_the_same(pipeline: Pipeline) -> None:
    shop = Working(pipeline.running.database_url, "shop", ok)
    stock = Working(pipeline.running.database_url, "stock", ok)
    async with Receiver(shop) as one, Receiver(stock) as two:
        for behaviour, receiver in ((shop, one), (stock, two)):
            behaviour.verifier = Verifier((await pipeline.endpoint(receiver.url))["secret"])
        await pipeline.publish()
        await pipeline.all_in("delivered", 2)
        (first,), (second,) = shop.found, stock.found
        assert first.event_id == second.event_id
        assert await works(pipeline) == [("shop", first.event_id), ("stock", first.event_id)]


async def test_copy_that_comes_while_the_work_goes_on_is_told_to_come_again(pipeline: Pipeline) -> None:
    memory, effects = ProcessMemory(), list[str]()
    turns: list[Turn] = []

    async def behaviour(request: Request, connection: Connection) -> None:
        result = verifier.verify(request.raw_headers, request.body)
        turn = memory.begin(result.event_id)
        turns.append(turn)
        if turn is Turn.FIRST:
            effects.append(result.event_id)
            return await reset(request, connection)  # the sender has given up, and the work goes on
        if turn is Turn.BUSY:
            memory.done(result.event_id)  # now it has ended
            return await status(503, {"retry-after": "0"})(request, connection)
        return await ok(request, connection)

    async with Receiver(behaviour) as receiver:
        verifier = Verifier((await pipeline.endpoint(receiver.url))["secret"])
        await pipeline.publish()
        await pipeline.all_in("delivered", 1)
        assert turns == [Turn.FIRST, Turn.BUSY, Turn.DONE]
        assert len(effects) == 1
