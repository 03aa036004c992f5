"""The Dramatiq broker that workers consume from. Consumes only: the poller is the only thing that publishes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NoReturn
from uuid import uuid4

import redis
from dramatiq import Consumer, Message, Middleware
from dramatiq.brokers.redis import RedisBroker
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.config import Settings
from workers import keys
from workers.consumer import HomingConsumer
from workers.messages import CONTROL_QUEUE, SLOW_QUEUE
from workers.metrics import WorkerMetrics

#: Longest that an idle consumer blocks before it looks again, in seconds; also how long a stop may go unnoticed.
IDLE_TIMEOUT_S = 1.0


class HomingBroker(RedisBroker):
    """A Redis broker without delay queues, results, or a way to enqueue.

    Args:
        settings: for prefetch and for how long silence must last before a consumer counts as dead: three leases, so that
            what it had fetched is stale by then whatever its clock said.
        redis_url: where the queues are.
        metrics: the worker's.
        middleware: complete and in order; Dramatiq's defaults are not added.
    """

    def __init__(
        self, settings: Settings, redis_url: str, metrics: WorkerMetrics, middleware: list[Middleware]
    ) -> None:
        client = redis.Redis.from_url(
            redis_url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0)
        )
        super().__init__(  # type: ignore[no-untyped-call]
            client=client, namespace=keys.NAMESPACE, middleware=middleware
        )
        self.metrics = metrics
        self.consumer_id = uuid4().hex
        self.dead_after_ms = int(settings.lease_s * 3000)
        #: Ids that this process's threads are working on or have waiting, per queue; outlives a reconnect.
        self.in_flight: defaultdict[str, set[bytes]] = defaultdict(set)
        self._prefetch = {CONTROL_QUEUE: 2, SLOW_QUEUE: max(1, settings.worker_threads // 2)}
        self._default_prefetch = settings.worker_threads
        self._scripts = {name: client.register_script(keys.script(name)) for name in ("fetch", "settle", "sweep")}

    def run(self, name: str, script_keys: list[str], arguments: list[Any]) -> Any:
        """Run one of the scripts in `workers/lua`; loads it again when Redis has forgotten it."""
        return self._scripts[name](keys=script_keys, args=arguments)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """A consumer that fetches no more than the threads of this process can take on."""
        return HomingConsumer(self, queue_name, self._prefetch.get(queue_name, self._default_prefetch), IDLE_TIMEOUT_S)

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue, without the delay queue that stock Dramatiq adds: every schedule is in Postgres."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> NoReturn:
        """Refused: a message without a claim in Postgres would be stale before it is read."""
        raise RuntimeError("Homing publishes through the poller only: write a row, do not send a message")

    def close(self) -> None:
        """Close the connections to Redis."""
        self.client.close()
