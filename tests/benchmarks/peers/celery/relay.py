"""Moves outbox rows to deliveries and sends one task for each, over one producer."""

from __future__ import annotations

from collections.abc import Sequence

from tasks import app, deliver
from webhooks import Delivery, relay

with app.producer_pool.acquire(block=True) as producer:

    def enqueue(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            deliver.apply_async(delivery, producer=producer)

    relay(enqueue)
