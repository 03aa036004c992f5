"""Takes messages off Redis for Dramatiq's threads, and believes nothing of what it reads.

Differences from Dramatiq's own consumer, each for a reason that has bitten others: a message that cannot be decoded is
dropped and counted instead of stranding its whole batch; options and keyword arguments in a message are ignored, so that a
forged one cannot chain another actor; an idle consumer blocks on a wake list instead of polling; after a reconnect what
was fetched and not worked on goes back into the queue; time-outs are treated like lost connections.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

import redis
from dramatiq import Consumer, Message, MessageProxy
from dramatiq.errors import ConnectionClosed

from app import failpoints
from workers import keys
from workers.messages import MESSAGE_MAX_BYTES

if TYPE_CHECKING:
    from workers.broker import HomingBroker

#: Longest that a consumer without room waits before it looks again, in seconds; an acknowledgement wakes it earlier.
SLOT_WAIT_S = 0.05
#: Seconds between two sweeps of dead consumers' leftovers.
SWEEP_EVERY_S = 30.0
#: Types that Redis must show for the five keys of a queue; a key of another type was not made by Homing.
_KEY_TYPES = {
    keys.queue_key: b"list",
    keys.payloads_key: b"hash",
    keys.wake_key: b"list",
    keys.consumers_key: b"zset",
}


class HomingConsumer(Consumer):
    """One queue's consumer in one worker process. `__next__` belongs to one thread; ack and nack to any."""

    def __init__(self, broker: HomingBroker, queue_name: str, prefetch: int, idle_timeout_s: float) -> None:
        self._broker = broker
        self._queue = queue_name
        self._prefetch = prefetch
        self._idle_timeout_s = idle_timeout_s
        self._buffer: list[tuple[bytes, bytes]] = []
        self._in_flight = broker.in_flight[queue_name]
        self._drained = False
        self._swept_at = 0.0
        self._slot_free = threading.Event()
        self._taken = keys.taken_key(queue_name, broker.consumer_id)
        self._put_back_leftovers()

    def __next__(self) -> MessageProxy | None:
        try:
            queue_is_empty = False
            if not self._buffer:
                if self._drained:
                    # The last fetch left nothing, and whatever came since has left a token on the wake list.
                    queue_is_empty = True
                    self._drained = False
                elif (room := self._prefetch - len(self._in_flight)) > 0:
                    self._buffer = self._fetch(room)
                    queue_is_empty = not self._buffer
                    self._drained = 0 < len(self._buffer) < room
                else:
                    self._slot_free.wait(SLOT_WAIT_S)
                    self._slot_free.clear()
            while self._buffer:
                message_id, payload = self._buffer.pop(0)
                if (message := self._decode(message_id, payload)) is not None:
                    self._in_flight.add(message_id)
                    return MessageProxy(message)
            self._sweep()
            if not queue_is_empty:
                # Nothing but rubbish, or no room: there may be more, so it must not sleep on the wake list.
                return None
            self._broker.client.blpop([keys.wake_key(self._queue)], timeout=self._idle_timeout_s)
        except redis.ResponseError as error:
            self._remove_foreign_keys(error)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise ConnectionClosed(error) from None  # type: ignore[no-untyped-call]
        return None

    def ack(self, message: MessageProxy) -> None:
        """Forget a message whose work is done, or that had none to do."""
        failpoints.reach("ack.before")
        self._settle("forget", [message])
        failpoints.reach("ack.done")

    def nack(self, message: MessageProxy) -> None:
        """Forget a message that could not be processed: its rows are leased, and the poller publishes them again."""
        self._broker.metrics.messages_rejected.labels("failed").inc()
        self._settle("forget", [message])

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Put messages back for another worker, at shutdown."""
        self._settle("requeue", list(messages))

    def close(self) -> None:
        """Put back what was fetched and not handed out."""
        ids = [message_id for message_id, _ in self._buffer]
        self._buffer = []
        if ids:
            try:
                self._run_settle("requeue", ids)
            except redis.RedisError as error:
                raise ConnectionClosed(error) from None  # type: ignore[no-untyped-call]

    def _fetch(self, room: int) -> list[tuple[bytes, bytes]]:
        flat: list[bytes] = self._broker.run(
            "fetch",
            [
                keys.queue_key(self._queue),
                keys.payloads_key(self._queue),
                self._taken,
                keys.consumers_key(self._queue),
            ],
            [self._broker.consumer_id, room, MESSAGE_MAX_BYTES],
        )
        return list(zip(flat[::2], flat[1::2], strict=True))

    def _decode(self, message_id: bytes, payload: bytes) -> Message[Any] | None:
        """A message made of nothing but a known actor and positional arguments; None when it was dropped."""
        try:
            fields = json.loads(payload)
            actor = self._broker.actors[fields["actor_name"]]
            arguments = tuple(fields["args"])
            if actor.queue_name != self._queue:
                raise ValueError("the actor belongs to another queue")
        except (ValueError, KeyError, TypeError, RecursionError):
            self._broker.metrics.messages_rejected.labels("undecodable").inc()
            self._run_settle("forget", [message_id])
            return None
        return Message(
            queue_name=self._queue,
            actor_name=actor.actor_name,
            args=arguments,
            kwargs={},
            options={"redis_message_id": message_id},
            message_id=message_id.decode("ascii", "replace"),
        )

    def _settle(self, verb: str, messages: list[MessageProxy]) -> None:
        ids = [message.options["redis_message_id"] for message in messages]
        try:
            self._run_settle(verb, ids)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            # Tried again by Dramatiq; until then the message still counts as in flight.
            raise ConnectionClosed(error) from None  # type: ignore[no-untyped-call]
        except redis.ResponseError as error:
            # Redis refuses (read-only, out of memory): Dramatiq gives up, so the room must not stay taken.
            self._give_room_back(ids)
            self._remove_foreign_keys(error)
        self._give_room_back(ids)

    def _give_room_back(self, ids: list[bytes]) -> None:
        self._in_flight.difference_update(ids)
        self._slot_free.set()

    def _run_settle(self, verb: str, ids: list[bytes]) -> None:
        if ids:
            queue_keys = [keys.queue_key(self._queue), keys.payloads_key(self._queue), self._taken]
            self._broker.run("settle", queue_keys, [verb, *ids])

    def _put_back_leftovers(self) -> None:
        """After a reconnect: what the last consumer of this process fetched and no thread is working on."""
        try:
            taken: set[bytes] = self._broker.client.smembers(self._taken)  # type: ignore[assignment]
            self._run_settle("requeue", list(taken - self._in_flight))
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise ConnectionClosed(error) from None  # type: ignore[no-untyped-call]
        except redis.ResponseError as error:
            self._remove_foreign_keys(error)

    def _sweep(self) -> None:
        if monotonic() - self._swept_at < SWEEP_EVERY_S:
            return
        self._swept_at = monotonic()
        prefix, suffix = keys.taken_key(self._queue, ""), ""
        self._broker.run(
            "sweep",
            [keys.payloads_key(self._queue), keys.consumers_key(self._queue)],
            [self._broker.dead_after_ms, prefix, suffix],
        )

    def _remove_foreign_keys(self, error: redis.ResponseError) -> None:
        """Somebody has put a value of another type under one of our names: delete it, the queue is rebuilt from Postgres.

        Raises:
            redis.ResponseError: that was not the cause.
        """
        client = self._broker.client
        wrong = [
            name(self._queue)
            for name, kind in _KEY_TYPES.items()
            if client.type(name(self._queue)) not in (kind, b"none")
        ]
        if client.type(self._taken) not in (b"set", b"none"):
            wrong.append(self._taken)
        if not wrong:
            raise error
        # Without its list of ids nobody would ever ask for the payloads.
        orphans = [keys.payloads_key(self._queue)] if keys.queue_key(self._queue) in wrong else []
        client.delete(*wrong, *orphans)
        self._broker.metrics.messages_rejected.labels("foreign_key").inc(len(wrong))
