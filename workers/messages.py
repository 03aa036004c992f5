"""What a Redis message looks like: ids and generations, nothing else. Pure.

The layout is Dramatiq 2.2's (a JSON object per message), written here for many at once and read back with suspicion:
anything in Redis may be forged, so nothing but the two lists of arguments is believed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from uuid import UUID

from app.attempts import Ticket
from app.claims import Claimed

#: Queue of the deliver actor.
DELIVER_QUEUE = "deliver"
#: Queue of the deliver actor for endpoints that have held requests lately; at most half of a worker's threads serve it.
SLOW_QUEUE = "slow"
#: Queue of the dead-letter and replay actors, so that they never wait behind a backlog of deliveries.
CONTROL_QUEUE = "control"
#: Largest message that is looked at; a full chunk has about 2.5 kB.
MESSAGE_MAX_BYTES = 16 * 1024
#: Most tickets in one message; `chunk_max` cannot be set higher.
TICKETS_MAX = 50


class MessageRefused(ValueError):
    """A message's arguments are not what the poller writes; it is dropped and counted."""


def encode(queue: str, actor: str, tickets: Sequence[Ticket]) -> tuple[str, bytes]:
    """One message for an actor: its id in Redis, and its bytes.

    The id is the first ticket, `<id>.<generation>`: each generation is published once, so ids never collide.
    """
    message_id = f"{tickets[0][0]}.{tickets[0][1]}"
    fields = {
        "queue_name": queue,
        "actor_name": actor,
        "args": [[ticket[0].hex for ticket in tickets], [ticket[1] for ticket in tickets]],
        "kwargs": {},
        "options": {"redis_message_id": message_id},
        "message_id": message_id,
        "message_timestamp": int(time.time() * 1000),
    }
    return message_id, json.dumps(fields, separators=(",", ":")).encode("ascii")


def parse_tickets(ids: object, generations: object) -> list[Ticket]:
    """Read a message's two arguments.

    Raises:
        MessageRefused: they are not two lists of the same length, 1 to 50, of UUIDs and positive 32-bit numbers.
    """
    if not isinstance(ids, list) or not isinstance(generations, list) or len(ids) != len(generations):
        raise MessageRefused("arguments are not two lists of one length")
    if not 1 <= len(ids) <= TICKETS_MAX:
        raise MessageRefused(f"a message has 1 to {TICKETS_MAX} tickets")
    tickets: dict[UUID, int] = {}
    for text, generation in zip(ids, generations, strict=True):
        if not isinstance(text, str) or type(generation) is not int or not 0 < generation < 2**31:
            raise MessageRefused("a ticket is an id and a positive number")
        try:
            tickets[UUID(text)] = generation
        except ValueError:
            raise MessageRefused("a ticket's id is not a UUID") from None
    return list(tickets.items())


def chunks(claimed: Sequence[Claimed], *, size_max: int, waiting: int) -> list[list[Ticket]]:
    """Cut what was claimed into messages.

    The size follows the backlog: one delivery each while the queue is empty and little is due (so that all workers share
    it and none waits for another's), up to `size_max` under load. Deliveries of one endpoint stay together, so that a
    receiver that hangs holds up few chunks.

    Args:
        claimed: what to publish, in any order.
        size_max: most deliveries in one message.
        waiting: messages in the queue already.
    """
    size = size_max if waiting else min(size_max, max(1, len(claimed) // 16))
    ordered = sorted(claimed, key=lambda c: c.endpoint_id.int)
    tickets = [(c.delivery_id, c.generation) for c in ordered]
    return [tickets[i : i + size] for i in range(0, len(tickets), size)]
