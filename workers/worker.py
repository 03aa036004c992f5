"""One worker process: a Dramatiq worker with Homing's broker, middleware and actors.

Run several processes, not several forks: Dramatiq's own command stops all siblings when one dies.
"""

from __future__ import annotations

import logging
import resource
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType

import dramatiq
import structlog

from app import failpoints
from app.config import Settings
from app.logs import configure_logging
from app.sealing import SecretKeys
from workers.broker import HomingBroker
from workers.collection import collect_less_often
from workers.control import dead_letter, replay
from workers.deliver import deliver
from workers.loop import UvloopIO
from workers.messages import CONTROL_QUEUE, DELIVER_QUEUE, SLOW_QUEUE
from workers.retries import AttemptsFailed, Retries
from workers.runtime import Runtime

log = structlog.get_logger(__name__)

#: Open files that a worker asks the system for.
FILES_WANTED = 8192


def make_broker(
    settings: Settings, database_url: str, redis_url: str, keys: SecretKeys
) -> tuple[HomingBroker, Runtime]:
    """The broker of one worker process, with its actors declared; nothing is connected yet."""
    runtime = Runtime(settings, database_url, redis_url, keys)
    middleware: list[dramatiq.Middleware] = [
        # The event loop that async actors run on; first, so that it is there before anything needs it.
        UvloopIO(),
        # Engine, transport and recorder live on that loop: opened after it starts, closed before it stops.
        runtime,
        # Settles failed attempts and rejects messages that could not be processed.
        Retries(runtime.record_from_thread),
        # Left out on purpose. Dramatiq's Retries, Results, Callbacks, Pipelines, GroupCallbacks: state in Redis, and
        # forged messages could chain actors. AgeLimit: generations age messages. TimeLimit: it cannot cut a socket
        # call, the transport's deadline does. Prometheus: it binds all interfaces and leaks.
    ]
    broker = HomingBroker(settings, redis_url, runtime.metrics, middleware)
    _declare(broker, runtime, deliver, DELIVER_QUEUE)
    _declare(broker, runtime, deliver, SLOW_QUEUE, name="deliver_slow")
    _declare(broker, runtime, dead_letter, CONTROL_QUEUE)
    _declare(broker, runtime, replay, CONTROL_QUEUE)
    return broker, runtime


Work = Callable[[Runtime, object, object], Awaitable[None]]


def _declare(broker: HomingBroker, runtime: Runtime, work: Work, queue: str, name: str | None = None) -> None:
    async def actor(ids: object, generations: object) -> None:
        await work(runtime, ids, generations)

    name = name or work.__name__
    dramatiq.actor(broker=broker, queue_name=queue, actor_name=name, throws=(AttemptsFailed,))(actor)


def _allow_connections() -> None:
    """Use as many file descriptors as the system grants: a full set of chunks has 800 requests under way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run_worker(settings: Settings, database_url: str, redis_url: str, keys: SecretKeys) -> None:
    """Work until SIGTERM or SIGINT, then finish what is under way (a deadline at most) and put the rest back."""
    configure_logging(settings.log_level, process="worker")
    failpoints.arm(settings.failpoints, database_url)
    logging.getLogger("dramatiq").setLevel(logging.ERROR)
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    _allow_connections()
    broker, runtime = make_broker(settings, database_url, redis_url, keys)
    worker = dramatiq.Worker(broker, worker_threads=settings.worker_threads, worker_timeout=1000)
    worker.start()
    collect_less_often()
    log.info("worker.started", name=runtime.name, threads=settings.worker_threads)
    stop.wait()
    log.info("worker.stopping")
    worker.stop(timeout=int(settings.lease_s * 1000))
    broker.close()
    log.info("worker.stopped")
