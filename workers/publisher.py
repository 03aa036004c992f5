"""Publishes to Redis, many messages in one round trip. Used by the poller only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import redis.asyncio as redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from app.attempts import Ticket
from app.claims import Claimed, for_dead_letter
from workers import keys
from workers.messages import CONTROL_QUEUE, DELIVER_QUEUE, SLOW_QUEUE, TICKETS_MAX, chunks, encode

#: Seconds after which Redis counts as away; its stalls must not become the poller's.
TIMEOUT_S = 2.0


class Publisher:
    """One connection to Redis; every method raises `redis.exceptions.RedisError` when Redis is away."""

    def __init__(self, redis_url: str, *, chunk_max: int) -> None:
        self._client = redis.Redis.from_url(
            redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        self._publish = self._client.register_script(keys.script("publish"))
        self._chunk_max = chunk_max

    async def waiting(self) -> tuple[int, bool]:
        """How many deliver messages wait, and whether Redis has lost its memory since the last call by any poller."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.llen(keys.queue_key(DELIVER_QUEUE))
        pipeline.set(keys.SENTINEL, "1", nx=True, get=True)
        try:
            length, sentinel = await pipeline.execute()
        except ResponseError:
            # A key of another type stands where ours should be; workers remove it, and nothing is published meanwhile.
            await self._client.delete(keys.SENTINEL)
            raise
        return int(length), sentinel is None

    async def publish(self, claimed: Sequence[Claimed], *, waiting: int) -> dict[str, int]:
        """Publish claimed deliveries, in chunks, to the actor that each is for; returns deliveries by queue."""
        to_deliver = [c for c in claimed if not for_dead_letter(c) and not c.slow]
        to_slow = [c for c in claimed if not for_dead_letter(c) and c.slow]
        to_file = [(c.delivery_id, c.generation) for c in claimed if for_dead_letter(c)]
        messages: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
        for chunk in chunks(to_deliver, size_max=self._chunk_max, waiting=waiting):
            messages[DELIVER_QUEUE].append(encode(DELIVER_QUEUE, "deliver", chunk))
        # Apart, and always in full chunks: what waits for a slow endpoint shares threads with nothing else.
        for chunk in chunks(to_slow, size_max=self._chunk_max, waiting=1):
            messages[SLOW_QUEUE].append(encode(SLOW_QUEUE, "deliver_slow", chunk))
        messages[CONTROL_QUEUE] = _control("dead_letter", to_file)
        await self._push(messages)
        counts = {DELIVER_QUEUE: len(to_deliver), CONTROL_QUEUE: len(to_file)}
        return counts | {SLOW_QUEUE: len(to_slow)} if to_slow else counts

    async def slow_waiting(self) -> int:
        """How many messages wait for slow endpoints."""
        return int(await self._client.llen(keys.queue_key(SLOW_QUEUE)))

    async def publish_replays(self, tickets: Sequence[Ticket]) -> None:
        """Publish requested replays to the replay actor."""
        await self._push({CONTROL_QUEUE: _control("replay", tickets)})

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def _push(self, messages: dict[str, list[tuple[str, bytes]]]) -> None:
        for queue, batch in messages.items():
            if batch:
                await self._publish(
                    keys=[keys.queue_key(queue), keys.payloads_key(queue), keys.wake_key(queue)],
                    args=[part for message in batch for part in message],
                )


def _control(actor: str, tickets: Sequence[Ticket]) -> list[tuple[str, bytes]]:
    return [encode(CONTROL_QUEUE, actor, tickets[i : i + TICKETS_MAX]) for i in range(0, len(tickets), TICKETS_MAX)]
