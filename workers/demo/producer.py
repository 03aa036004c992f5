"""The business: orders, each written in one transaction with the event that tells the world about it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.outbox import add_event

CONNECTIONS = 4
"""Transactions that are open at the same time."""

_MAKE_TABLE = text(
    """
    CREATE TABLE orders (
        id         integer PRIMARY KEY,
        event_type text NOT NULL,
        amount     numeric(10, 2) NOT NULL,
        made_at    timestamptz NOT NULL DEFAULT now()
    )
    """
)

_INSERT = text("INSERT INTO orders (id, event_type, amount) VALUES (:id, :event_type, :amount) ON CONFLICT DO NOTHING")


class CardDeclined(Exception):
    """Why a transaction is rolled back after its order and its event were written."""


@dataclass
class Tally:
    """What the producer has done so far."""

    transactions: int = 0
    rolled_back: int = 0
    repeated: int = 0
    """Transactions that wrote an order's event once more, with the same idempotency key."""


async def make_orders_table(engine: AsyncEngine) -> None:
    """Make the table `orders` beside the outbox, in the demo's own database."""
    async with engine.begin() as connection:
        await connection.execute(_MAKE_TABLE)


async def produce(engine: AsyncEngine, transactions: int, tally: Tally) -> None:
    """Run the transactions, several at a time; `tally` follows.

    One in ten is rolled back after it wrote its order and its event. One in fifty repeats the one before it, as a caller
    does that has not heard whether it went through.

    Raises:
        sqlalchemy.exc.DBAPIError: the database refused one; the others under way are rolled back.
    """
    waiting = iter(range(transactions))

    async def work() -> None:
        async with engine.connect() as connection:
            for number in waiting:
                await _one(connection, number, tally)

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(work())


async def _one(connection: AsyncConnection, number: int, tally: Tally) -> None:
    is_repeat = number % 50 == 49
    declined = number % 10 == 7
    try:
        async with connection.begin():
            await _place(connection, number - 1 if is_repeat else number)
            if declined:
                raise CardDeclined
    except CardDeclined:
        tally.rolled_back += 1
    tally.transactions += 1
    tally.repeated += is_repeat


async def _place(connection: AsyncConnection, order_id: int) -> None:
    event_type = {0: "order.cancelled", 1: "order.shipped", 2: "invoice.issued"}.get(order_id % 7, "order.placed")
    amount = f"{order_id % 900 + 1}.50"
    await connection.execute(_INSERT, {"id": order_id, "event_type": event_type, "amount": amount})
    await connection.run_sync(
        add_event,
        event_type,
        {"order_id": order_id, "amount": amount},
        request_id=f"order-{order_id}",
        idempotency_key=f"{event_type}-{order_id}",
    )
