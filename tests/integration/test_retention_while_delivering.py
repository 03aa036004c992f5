"""Old weeks are dropped while a real poller and real workers deliver: nothing is lost, nothing is sent twice."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from pathlib import Path

from tests.old_weeks import OldWeeks
from tests.pipeline import Pipeline, running_pipeline, until
from tests.receiver import Receiver, ok

WEEKS, EVENTS = range(8, 20), 3000


async def test_dropping_weeks_while_delivering_loses_nothing_and_uses_up_no_attempt(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path) as pipeline:
        weeks = OldWeeks(pipeline.running.database_url)
        endpoint = await pipeline.endpoint(receiver.url)
        names = [await asyncio.to_thread(weeks.make, n) for n in WEEKS]
        for n in WEEKS:
            await asyncio.to_thread(weeks.delivery, n, "delivered", endpoint=endpoint["id"])
        await asyncio.to_thread(weeks.delivery, WEEKS[0], "replayed", endpoint=endpoint["id"])
        dropping = asyncio.create_task(_retention(pipeline, tmp_path))
        published = 0
        while published < EVENTS or not dropping.done():
            await pipeline.publish(100)
            published += 100
            seen = published
            await until(lambda n=seen: _at_least(receiver, n - 300))
        assert await dropping == 0
        assert weeks.partitions().isdisjoint(names[1:]), "a week that was free is still there"
        assert names[0] in weeks.partitions(), "the week with a delivery that waits was dropped"

        async with pipeline.engine.begin() as connection:
            await connection.exec_driver_sql("UPDATE deliveries SET due_at = now() WHERE due_at = 'infinity'")
        await pipeline.all_in("delivered", published + 2)
        sent = Counter(request.headers["webhook-id"] for request in receiver.requests)
        assert len(sent) == published + 1
        assert set(sent.values()) == {1}
        (most,) = await pipeline.rows("SELECT max(attempts) FROM deliveries")
        assert most.max == 1, "dropping used up an attempt"
        assert await _retention(pipeline, tmp_path) == 0
        assert names[0] not in weeks.partitions()


async def _retention(pipeline: Pipeline, home: Path) -> int:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workers.cli.main", "retention", "--keep", "30", "--execute", "--yes"),
        env=os.environ
        | {
            "HOMING_HOME": str(home / "home"),
            "HOMING_DATABASE_URL": pipeline.running.database_url,
            "HOMING_REDIS_URL": pipeline.running.redis_url,
            "HOMING_SECRET_KEYS_FILE": str(pipeline.settings.home / "secret_keys"),
        },
    )
    return await process.wait()


async def _at_least(receiver: Receiver, count: int) -> bool:
    return len(receiver.requests) >= count
