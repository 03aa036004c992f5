"""The memories of a receiver on a real Redis and a real PostgreSQL."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import psycopg
import pytest
import redis
import redis.asyncio
from psycopg import errors

from app.verifier import CLAIM_S, KEEP_S, PostgresMemory, RedisMemory, Turn
from tests.conftest import Servers


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


# Redis


def test_redis_tells_first_busy_and_done_apart(client: Any) -> None:
    memory, other_process = RedisMemory(client, "shop"), RedisMemory(client, "shop")
    assert memory.begin("a") is Turn.FIRST
    assert other_process.begin("a") is Turn.BUSY
    memory.done("a")
    assert memory.begin("a") is other_process.begin("a") is Turn.DONE


def test_redis_remembers_what_is_done_for_24_hours_and_a_claim_for_a_minute(client: Any) -> None:
    memory = RedisMemory(client, "shop")
    memory.begin("a")
    assert 0 < client.ttl("webhook:shop:claim:a") <= CLAIM_S
    memory.done("a")
    assert KEEP_S - 60 < client.ttl("webhook:shop:done:a") <= KEEP_S


def test_redis_frees_the_id_of_a_crashed_or_failed_receiver(client: Any) -> None:
    memory = RedisMemory(client, "shop")
    assert memory.begin("crashed") is memory.begin("failed") is Turn.FIRST
    client.pexpire("webhook:shop:claim:crashed", 1)
    memory.release("failed")
    assert 0 < client.pttl("webhook:shop:claim:failed") <= 1000
    client.pexpire("webhook:shop:claim:failed", 1)
    while client.exists("webhook:shop:claim:crashed", "webhook:shop:claim:failed"):
        pass
    assert memory.begin("crashed") is memory.begin("failed") is Turn.FIRST


def test_redis_never_calls_work_first_that_is_done_even_when_the_claim_has_gone(client: Any) -> None:
    memory = RedisMemory(client, "shop")
    memory.begin("a")
    memory.done("a")
    client.delete("webhook:shop:claim:a")
    assert memory.begin("a") is Turn.DONE


def test_redis_lets_one_of_many_copies_at_once_be_first(client: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        turns = list(pool.map(lambda n: RedisMemory(client, "shop").begin(str(n % 5)), range(200)))
    assert (turns.count(Turn.FIRST), turns.count(Turn.BUSY)) == (5, 195)


def test_redis_keeps_endpoints_apart(client: Any) -> None:
    shop, stock = RedisMemory(client, "shop"), RedisMemory(client, "stock")
    assert shop.begin("a") is Turn.FIRST
    shop.done("a")
    assert stock.begin("a") is Turn.FIRST


async def test_asynchronous_client_is_an_error_and_not_a_duplicate(redis_url: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        started: list[Any] = []

        class Catching:
            def set(self, *args: Any, **options: Any) -> Any:
                started.append(client.set(*args, **options))
                return started[-1]

        with pytest.raises(TypeError, match="synchronous"):
            RedisMemory(Catching(), "shop").begin("a")
        for answer in started:
            await answer


def test_pipeline_is_an_error_and_not_a_duplicate(client: Any) -> None:
    with pytest.raises(TypeError, match="pipeline"):
        RedisMemory(client.pipeline(), "shop").begin("a")


def test_redis_being_away_is_an_error_and_not_a_duplicate() -> None:
    with redis.Redis(host="127.0.0.1", port=1) as away, pytest.raises(redis.ConnectionError):
        RedisMemory(away, "shop").begin("a")


# Postgres


@pytest.fixture
def table(servers: Servers, database_url: str) -> str:
    """A database with the table as the docstring says, and a table of work."""
    documented = textwrap.dedent(str(PostgresMemory.__doc__).partition("work.\n\n")[2].partition("\n\n")[0])
    assert documented.count(";") == 2
    with psycopg.connect(database_url) as connection:
        connection.execute(documented)  # type: ignore[call-overload]
        connection.execute("CREATE TABLE work (event_id text)")
    return database_url


def do_work(connection: Any, event_id: str, namespace: str = "shop") -> Turn:
    turn = PostgresMemory(connection, namespace).begin(event_id)
    if turn is Turn.FIRST:
        connection.execute("INSERT INTO work VALUES (%s)", (event_id,))
    return turn


def works(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM work").fetchone()
        assert row is not None
        return int(row[0])


def test_postgres_remembers_work_that_was_committed(table: str) -> None:
    for turn in (Turn.FIRST, Turn.DONE, Turn.DONE):
        with psycopg.connect(table) as connection:
            assert do_work(connection, "a") is turn
    assert works(table) == 1


def test_postgres_forgets_work_that_was_rolled_back(table: str) -> None:
    with psycopg.connect(table) as connection:
        assert do_work(connection, "a") is Turn.FIRST
        connection.rollback()
        assert do_work(connection, "a") is Turn.FIRST
    assert works(table) == 1


def test_postgres_forgets_work_of_a_receiver_that_crashed(table: str) -> None:
    connection = psycopg.connect(table)
    assert do_work(connection, "a") is Turn.FIRST
    backend = connection.info.backend_pid
    with psycopg.connect(table, autocommit=True) as killer:
        killer.execute("SELECT pg_terminate_backend(%s, 10000)", (backend,))
    connection.close()
    with psycopg.connect(table) as connection:
        assert do_work(connection, "a") is Turn.FIRST
    assert works(table) == 1


@pytest.mark.parametrize("commits", [True, False], ids=["committed", "rolled-back"])
def test_second_copy_waits_for_the_first_and_learns_what_became_of_it(table: str, commits: bool) -> None:
    with psycopg.connect(table) as one, psycopg.connect(table) as two, ThreadPoolExecutor(1) as pool:
        assert do_work(one, "a") is Turn.FIRST
        second = pool.submit(do_work, two, "a")
        with psycopg.connect(table, autocommit=True) as watcher:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = %s"
            while watcher.execute(waiting, (two.info.backend_pid,)).fetchone() != (1,):
                assert not second.done()
        one.commit() if commits else one.rollback()
        assert second.result(30) is (Turn.DONE if commits else Turn.FIRST)
        two.commit()
    assert works(table) == 1


def test_of_many_copies_at_once_the_work_of_each_event_happens_once(table: str) -> None:
    def receive(n: int) -> Turn:
        with psycopg.connect(table) as connection:
            return do_work(connection, str(n % 3))

    with ThreadPoolExecutor(8) as pool:
        turns = [done.result() for done in wait([pool.submit(receive, n) for n in range(30)]).done]
    assert (turns.count(Turn.FIRST), turns.count(Turn.DONE), works(table)) == (3, 27, 3)


def test_without_a_transaction_beginning_is_an_error_because_a_crash_would_lose_the_event(table: str) -> None:
    with psycopg.connect(table, autocommit=True) as connection:
        with pytest.raises(errors.NoActiveSqlTransaction):
            do_work(connection, "a")
        with connection.transaction():
            assert do_work(connection, "a") is Turn.FIRST
        with connection.transaction():
            assert do_work(connection, "a") is Turn.DONE


def test_postgres_keeps_endpoints_apart(table: str) -> None:
    with psycopg.connect(table) as connection:
        assert do_work(connection, "a", "shop") is do_work(connection, "a", "stock") is Turn.FIRST


def test_postgres_forgets_what_is_old_when_told_and_only_its_own(table: str) -> None:
    with psycopg.connect(table) as connection:
        for namespace, name in (("shop", "old"), ("shop", "young"), ("stock", "old")):
            do_work(connection, name, namespace)
        connection.execute(
            "UPDATE webhook_seen SET seen_at = now() - interval '24 hours 1 second' WHERE event_id = 'old'"
        )
        assert PostgresMemory(connection, "shop").forget_old() == 1
        assert do_work(connection, "old", "shop") is Turn.FIRST
        assert do_work(connection, "young", "shop") is do_work(connection, "old", "stock") is Turn.DONE
