"""F01 to F03: producers that die around their commit, and one that commits late."""

from __future__ import annotations

import asyncio
from time import monotonic

import psycopg

from workers.chaos.load import TENANTS
from workers.chaos.producer import INSERT
from workers.chaos.scenario import Expect, Scenario
from workers.chaos.stage import SLOW_POLL_S
from workers.chaos.trial import Trial

_FIRST_ATTEMPTS = """
    SELECT extract(epoch FROM min(a.started_at) - o.made_at)::float8 AS wait_s
    FROM orders o JOIN deliveries d USING (event_id) JOIN delivery_attempts a ON a.delivery_id = d.id
    WHERE o.made_at > to_timestamp(%(since)s) GROUP BY d.id, o.made_at
"""


async def dies_before_commit(trial: Trial) -> None:
    """What it wrote must leave no trace."""
    steady = trial.produce(20)
    dying = trial.produce(100, trial.times(40, 200), die="before_commit")
    trial.faults = (await dying.finish())["deaths"]
    await steady.stop()


async def dies_after_commit(trial: Trial) -> None:
    """Nobody is there to tell anybody: the row alone must be enough."""
    since = await trial.now()
    dying = trial.produce(40, trial.times(60, 200), die="after_commit")
    trial.faults = (await dying.finish())["deaths"]
    await trial.settled(30)
    waits = sorted(row.wait_s for row in await trial.rows(_FIRST_ATTEMPTS, since=since))
    bar = SLOW_POLL_S + 1
    trial.figures["first_attempt_max_s"] = round(waits[-1], 3)
    trial.check(waits[-1] <= bar, f"a first attempt began {waits[-1]:.2f} s after its commit, over {bar:g} s")


async def commits_late(trial: Trial) -> None:
    """A row older than a thousand that were taken since must not be skipped."""
    newer = trial.times(200, 1000)
    late = [str(trial.random.random()) for _ in range(5)]
    with psycopg.connect(trial.database_url) as connection:
        for n, request in enumerate(late):
            order = {"tenant": TENANTS[0], "type": f"one.{n % 2}", "payload": f'{{"late": {n}}}', "request": request}
            connection.execute(INSERT, order)
        began = monotonic()
        rate = 50.0
        producer = trial.produce(rate, newer, rollback=0.0)
        await producer.finish()
        await asyncio.sleep(max(0.0, trial.times(6, 20) - (monotonic() - began)))
        await trial.settled(20)
        trial.figures["open_s"] = round(monotonic() - began, 1)
        at = await trial.now()
        connection.commit()
    trial.faults = len(late)
    await trial.until(lambda: _all_started(trial, late))
    rows = await trial.rows(
        "SELECT extract(epoch FROM max(d.delivered_at))::float8 AS at FROM deliveries d "
        "JOIN events e ON e.id = d.event_id WHERE e.request_id = ANY(%(late)s)",
        late=late,
    )
    wait = rows[0].at - at
    trial.figures["late_max_s"] = round(wait, 3)
    trial.check(wait <= 2, f"what was committed late was delivered {wait:.2f} s after its commit, over 2 s")


async def _all_started(trial: Trial, late: list[str]) -> bool:
    (row,) = await trial.rows(
        "SELECT count(*) AS n FROM deliveries d JOIN events e ON e.id = d.event_id "
        "WHERE e.request_id = ANY(%(late)s) AND d.state = 'delivered'",
        late=late,
    )
    return bool(row.n == len(late))


SCENARIOS = (
    Scenario("F01", "producer killed before its commit", dies_before_commit, (Expect("homing_outbox_taken_total"),)),
    Scenario(
        "F02",
        "producer killed right after its commit",
        dies_after_commit,
        (Expect("homing_outbox_taken_total"),),
        per_tenant=4,
    ),
    Scenario("F03", "a transaction commits after newer ones", commits_late, (Expect("homing_outbox_taken_total"),)),
)
