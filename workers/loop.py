"""The event loop of a worker process, on uvloop: about a fifth less CPU per request than asyncio's own loop."""

from __future__ import annotations

import uvloop
from dramatiq import Broker, Worker
from dramatiq.asyncio import EventLoopThread, set_event_loop_thread
from dramatiq.middleware import AsyncIO


class UvloopIO(AsyncIO):
    """Dramatiq's `AsyncIO` middleware with another loop in the same thread."""

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Start the thread; actors and `Runtime` find it through Dramatiq."""
        thread = EventLoopThread(self.logger)
        thread.loop.close()
        thread.loop = uvloop.new_event_loop()
        thread.start(timeout=5.0)
        set_event_loop_thread(thread)
