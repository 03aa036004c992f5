"""Every statement of the pipeline, in any order, twice, late and stale, on real PostgreSQL, against a model of its own.

Hypothesis chooses what producers, pollers, workers, operators and the clock do; after each step the tables must hold
exactly what `tests.faults.model` says, and at the end of each run everything must still come to an end. The clock is
moved by setting `due_at` back; leases and delays are so long that nothing falls due by itself.

A run that fails prints the steps to repeat it. `HOMING_STATE_MACHINE_EXAMPLES=1000` looks further, at random. Each of
these breakages of one line was tried, and is found, within 20 to 75 s:

    claims.py        no `FOR UPDATE SKIP LOCKED` · generation not raised · no lease at claim · no quarantine · attempts never
                     exhausted by an expiry · no attempt row for it · given back by another owner · attempts under way
                     released when Redis has lost its memory
    attempts.py      start under any generation, without an owner, of an endpoint that is not active, not counted · record
                     under any generation, in any state · faults of our own counted · `unknown_streak` kept · the letter
                     of a delivered replay not resolved
    intake.py        the idempotency key ignored · disabled endpoints fanned out to
    replay           attempts kept · generation kept
    dead_letters.py  filed under any generation

Two are not found, because another guard says the same: `state <> 'delivering'` left out of `release_if_claimed`, where the
owner tells; and replay from any state, because nothing leaves failed or dead_lettered while its replay is asked for.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from app.db import make_engine
from tests.faults.machine import Pipeline

EXAMPLES = int(os.environ.get("HOMING_STATE_MACHINE_EXAMPLES", "0"))
STEPS = 100
STEPS_MIN = 5000
MOVES = {
    ("", "pending"),
    ("pending", "delivering"),
    ("replayed", "delivering"),
    ("retry_scheduled", "delivering"),
    ("delivering", "delivered"),
    ("delivering", "retry_scheduled"),
    ("delivering", "failed"),
    ("failed", "dead_lettered"),
    ("failed", "replayed"),
    ("dead_lettered", "replayed"),
}


@pytest.mark.timeout(600)
def test_whatever_happens_in_whatever_order_the_tables_hold_what_the_model_says(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        # Nothing crashes here, and a commit that does not wait for the disk is ten times faster.
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET synchronous_commit = off")
    with asyncio.Runner() as runner, psycopg.connect(database_url, autocommit=True) as sync:
        engine = make_engine(database_url, name="test", pool_size=3)
        machine = type(
            "Run",
            (Pipeline,),
            {"database_url": database_url, "engine": engine, "sync": sync, "run": staticmethod(runner.run)},
        )
        machine.steps, machine.moves = 0, Counter()
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=EXAMPLES or 75,
                    stateful_step_count=STEPS,
                    derandomize=not EXAMPLES,
                    database=None,
                    deadline=None,
                    print_blob=True,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(engine.dispose())
        print(f"{machine.steps} steps; moves: {dict(machine.moves)}")
        assert machine.steps >= STEPS_MIN, "too few steps to mean anything"
        assert set(machine.moves) >= MOVES, "a documented move never happened"
