"""F16, F17 and F19: Postgres killed, frozen, and without free connections."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack

import psycopg

from app.embedded import EmbeddedPostgres
from app.embedded.process import wait_until
from workers.chaos.measure import children_of
from workers.chaos.scenario import Expect, Scenario, own_postgres
from workers.chaos.stage import DEADLINE_S, LEASE_S, RECOVERY_S
from workers.chaos.trial import Trial

_FAILURES = Expect("homing_poller_failures_total")
_TERMINATE = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE application_name LIKE 'homing-%%' AND application_name <> 'homing-chaos' AND datname = %s
"""
_DELIVERED_SINCE = """
    SELECT extract(epoch FROM min(at))::float8 - %(at)s AS wait_s FROM homing_chaos_moves
    WHERE state = 'delivered' AND at > to_timestamp(%(at)s)
"""


async def killed(trial: Trial) -> None:
    """Kill -9 of the postmaster under load, started again at once."""
    postgres = trial.stage.postgres
    assert postgres is not None
    trial.receiver.script("*", "status", code=200, delay_s=0.05)
    producer = trial.produce(25 if trial.full else 20)
    for n in range(trial.times(3, 12)):
        await asyncio.sleep(trial.random.uniform(1.0, 2.0))
        await asyncio.to_thread(_kill_and_start, postgres)
        trial.faults += 1
        await trial.mark_under_way(may_repeat=True)
        if n % 3 == 2:
            await asyncio.sleep(RECOVERY_S)
        else:
            trial.marks.pop()  # the next kill would be part of what is measured
    await producer.stop()


def _kill_and_start(postgres: EmbeddedPostgres) -> None:
    postgres.kill()
    postgres.start()


async def frozen(trial: Trial) -> None:
    """SIGSTOP of every process of the server: connections stay, nothing answers, new ones hang."""
    postgres = trial.stage.postgres
    assert postgres is not None
    assert postgres.pid is not None
    trial.receiver.script("*", "status", code=200, delay_s=0.2)
    producer = trial.produce(20)
    await asyncio.sleep(2)
    pids = [postgres.pid, *children_of(postgres.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    trial.faults += 1
    try:
        await asyncio.sleep(trial.times(8, 20))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    await trial.mark_under_way(may_repeat=True)
    await asyncio.sleep(2)
    await producer.stop()


async def without_connections(trial: Trial) -> None:
    """Sessions killed, then no connection to be had for some seconds, then an immediate shutdown as in a failover."""
    postgres = trial.stage.postgres
    assert postgres is not None
    producer = trial.produce(20)
    database = trial.database_url.rpartition("/")[2]
    with psycopg.connect(trial.database_url, autocommit=True) as own:
        for _ in range(trial.times(2, 5)):
            await asyncio.sleep(0.7)
            await trial.mark_under_way(may_repeat=True)
            trial.faults += len(own.execute(_TERMINATE, (database,)).fetchall())
        await asyncio.sleep(RECOVERY_S)  # what was hit so far must not wait for what comes now
        with ExitStack() as taken:
            for _ in range(3):  # what is freed by a kill is taken at once, until nothing is left to be freed
                await asyncio.to_thread(_take_all, trial.database_url, taken)
                own.execute(_TERMINATE, (database,))
                trial.faults += 1
            await asyncio.to_thread(_take_all, trial.database_url, taken)
            await asyncio.sleep(4)
    await trial.mark_under_way(may_repeat=True)
    await _heals(trial, "connections could be had again")
    await asyncio.to_thread(_stop_at_once, postgres)
    trial.faults += 1
    await trial.mark_under_way(may_repeat=True)
    await _heals(trial, "the immediate restart")
    await producer.stop()


def _take_all(database_url: str, taken: ExitStack) -> None:
    """Open connections until there is none left."""
    for _ in range(300):
        try:
            connection = psycopg.connect(database_url, connect_timeout=3, autocommit=True, application_name="hog")
        except psycopg.OperationalError:
            return
        taken.callback(connection.close)


def _stop_at_once(postgres: EmbeddedPostgres) -> None:
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGQUIT)
    wait_until(lambda: not postgres.is_running(), 10)
    _kill_and_start(postgres)


async def _heals(trial: Trial, when: str) -> None:
    at = await trial.now()

    async def delivered() -> float | None:
        wait: float | None = (await trial.rows(_DELIVERED_SINCE, at=at))[0].wait_s
        return wait

    wait = await trial.until(delivered, 20)
    trial.figures["healed_s"] = round(max(wait or 99.0, trial.figures.get("healed_s", 0.0)), 2)
    trial.check(wait is not None and wait <= 5, f"nothing was delivered within 5 s after {when}: {wait}")


SCENARIOS = (
    Scenario("F16", "Postgres killed", killed, (_FAILURES,), (own_postgres,)),
    Scenario(
        "F17",
        "Postgres frozen",
        frozen,
        (),  # no metric of today's shows it: everybody waits for the server, and goes on when it does
        (own_postgres,),
        # A request may be signed with the time of a start that was frozen before it went on.
        signature_age_s=5 + 20 + LEASE_S + DEADLINE_S,
    ),
    Scenario("F19", "Postgres without connections", without_connections, (_FAILURES,), (own_postgres,)),
)
