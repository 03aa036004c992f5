"""Moves outbox rows to deliveries and defers their jobs, in one transaction."""

from __future__ import annotations

import asyncio

import psycopg
import uvloop
from tasks import app, deliver
from webhooks import BATCH, CLAIM, DATABASE_URL, IDLE_S

NAMES = ("delivery_id", "event_id", "url", "secret", "payload")


async def relay() -> None:
    async with app.open_async(), await psycopg.AsyncConnection.connect(DATABASE_URL, autocommit=True) as connection:
        analyzed = False
        while True:
            async with connection.transaction():
                claimed = await (await connection.execute(CLAIM, (BATCH,))).fetchall()
                if claimed:
                    jobs = [dict(zip(NAMES, row, strict=True)) for row in claimed]
                    await deliver.configure(connection=connection).batch_defer_async(*jobs)
            if not claimed:
                await asyncio.sleep(IDLE_S)
            elif not analyzed and len(claimed) == BATCH:
                # As autovacuum would within a minute. Until then the plan that fetches a job sorts all that wait.
                await connection.execute("ANALYZE procrastinate_jobs")
                analyzed = True


uvloop.run(relay())
