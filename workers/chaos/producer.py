"""The business, as a process of its own: orders and their events, each pair in one transaction, at a steady rate.

Run as `python -m workers.chaos.producer`. Standard input: one line of JSON, then its end means stop. Standard output: one
line of JSON at the end. Plain SQL only: it is a producer as anybody would write it, and knows nothing of Homing's code.

With `die`, each transaction is made by a child of its own that is killed (SIGKILL) at that place: `before_commit` after both
rows were written, `after_commit` as soon as the commit has returned.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import psycopg

# One statement, so that the order knows its event's id; the id is the database's.
INSERT = """
    WITH event AS (
        INSERT INTO outbox_events (tenant_id, event_type, payload, request_id)
        VALUES (%(tenant)s, %(type)s, %(payload)s, %(request)s) RETURNING id
    )
    INSERT INTO orders (event_id, tenant_id, event_type, payload)
    SELECT id, %(tenant)s, %(type)s, %(payload)s FROM event RETURNING event_id
"""
RECONNECT_AFTER_S = 0.1


@dataclass
class Tally:
    """What became of the transactions, as the producer knows it; the table `orders` is the truth."""

    committed: int = 0
    rolled_back: int = 0
    in_doubt: int = 0
    deaths: int = 0
    waits_s: list[float] = field(default_factory=list)


def main() -> None:
    """Produce until the count is reached or standard input ends."""
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    source = random.Random(task["seed"])
    tally = Tally()
    connection: psycopg.Connection | None = None
    began = time.monotonic()
    for number in range(task["count"]):
        wait = began + number / task["rate"] - time.monotonic()
        if _told_to_stop(max(0.0, wait)):
            break
        order = _order(task, source, number)
        if task["die"]:
            _in_a_child_that_dies(task, order, tally)
            continue
        connection = _produce(task, order, connection, tally, rolls_back=source.random() < task["rollback"])
    waits = sorted(tally.waits_s) or [0.0]
    print(
        json.dumps(
            {
                "committed": tally.committed,
                "rolled_back": tally.rolled_back,
                "in_doubt": tally.in_doubt,
                "deaths": tally.deaths,
                "commit_p99_s": round(waits[len(waits) * 99 // 100], 3),
            }
        ),
        flush=True,
    )


def _told_to_stop(wait_s: float) -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], wait_s)
    return bool(readable)


def _order(task: dict[str, Any], source: random.Random, number: int) -> dict[str, str]:
    tenant, event_type = source.choice(task["choices"])
    payload = json.dumps({"n": number, "text": "Grüße ☃ " + "x" * source.randrange(200)}, ensure_ascii=False)
    return {"tenant": tenant, "type": event_type, "payload": payload, "request": f"{task['name']}-{number}"}


def _produce(
    task: dict[str, Any],
    order: dict[str, str],
    connection: psycopg.Connection | None,
    tally: Tally,
    *,
    rolls_back: bool,
) -> psycopg.Connection | None:
    """One transaction; the connection to go on with."""
    began = time.monotonic()
    committing = False
    try:
        if connection is None or connection.closed:
            connection = psycopg.connect(task["database_url"], connect_timeout=3, application_name="chaos-producer")
        connection.execute(INSERT, order)
        if rolls_back:
            connection.rollback()
            tally.rolled_back += 1
            return connection
        committing = True
        connection.commit()
    except psycopg.Error:
        tally.in_doubt += committing
        if connection is not None:
            connection.close()
        time.sleep(RECONNECT_AFTER_S)
        return None
    tally.committed += 1
    tally.waits_s.append(time.monotonic() - began)
    return connection


def _in_a_child_that_dies(task: dict[str, Any], order: dict[str, str], tally: Tally) -> None:
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        tally.deaths += os.WIFSIGNALED(status)
        return
    try:
        with psycopg.connect(task["database_url"], connect_timeout=3) as connection:
            connection.execute(INSERT, order)
            if task["die"] == "before_commit":
                os.kill(os.getpid(), signal.SIGKILL)
            connection.commit()
            os.kill(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
