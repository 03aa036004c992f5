"""Moves outbox rows to deliveries and sends one message for each."""

from __future__ import annotations

from collections.abc import Sequence

from tasks import deliver
from webhooks import Delivery, relay


def enqueue(deliveries: Sequence[Delivery]) -> None:
    for delivery in deliveries:
        deliver.send(*delivery)


relay(enqueue)
