"""The states of a delivery and the moves between them; every guarded statement is one of these moves."""

from __future__ import annotations

from enum import StrEnum


class DeliveryState(StrEnum):
    """Where a delivery stands; what each one means, and what leaves it, is in docs/architecture.md, "States"."""

    PENDING = "pending"
    DELIVERING = "delivering"
    DELIVERED = "delivered"
    RETRY_SCHEDULED = "retry_scheduled"
    FAILED = "failed"
    DEAD_LETTERED = "dead_lettered"
    REPLAYED = "replayed"


#: States from which an attempt may start.
STARTABLE = (DeliveryState.PENDING, DeliveryState.RETRY_SCHEDULED, DeliveryState.REPLAYED)
#: States from which a person may replay.
REPLAYABLE = (DeliveryState.FAILED, DeliveryState.DEAD_LETTERED)

#: move -> (from, to). A statement that finds its row in any other state, or under another generation, writes nothing.
MOVES: dict[str, tuple[tuple[DeliveryState, ...], DeliveryState]] = {
    "start": (STARTABLE, DeliveryState.DELIVERING),
    "give_up": (STARTABLE, DeliveryState.FAILED),
    "deliver": ((DeliveryState.DELIVERING,), DeliveryState.DELIVERED),
    "schedule_retry": ((DeliveryState.DELIVERING,), DeliveryState.RETRY_SCHEDULED),
    "fail": ((DeliveryState.DELIVERING,), DeliveryState.FAILED),
    "expire": ((DeliveryState.DELIVERING,), DeliveryState.RETRY_SCHEDULED),
    "exhaust": ((DeliveryState.DELIVERING,), DeliveryState.FAILED),
    "file": ((DeliveryState.FAILED,), DeliveryState.DEAD_LETTERED),
    "replay": (REPLAYABLE, DeliveryState.REPLAYED),
}
