"""Moves outbox rows to deliveries and defers their jobs, in one transaction."""

from __future__ import annotations

import asyncio

import psycopg
import uvloop
from tasks import app, deliver
from webhooks import BATCH, CLAIM, DATABASE_URL, IDLE_S


async def relay() -> None:
    async with app.open_async(), await psycopg.AsyncConnection.connect(DATABASE_URL) as connection:
        while True:
            async with connection.transaction():
                cursor = await connection.execute(CLAIM, (BATCH,))
                claimed = await cursor.fetchall()
                if claimed:
                    await deliver.configure(connection=connection).batch_defer_async(
                        *(
                            {
                                "delivery_id": row[0],
                                "event_id": row[1],
                                "url": row[2],
                                "secret": row[3],
                                "payload": row[4],
                            }
                            for row in claimed
                        )
                    )
            if not claimed:
                await asyncio.sleep(IDLE_S)


uvloop.run(relay())
