"""Retry, exhaustion and the hand-over to the dead-letter actor: what happens when the deliver actor raises.

Takes the place of Dramatiq's own `Retries`, which puts a copy of the message into Redis with a delay, and loses the
message when that fails. Here the schedule is the delivery's `due_at` in Postgres: a retry is retry_scheduled with its
time, exhaustion is failed, and the poller publishes either when it is due, the failed ones to the dead-letter actor.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic

import structlog
from dramatiq import Broker, MessageProxy, Middleware

from app.attempts import Settled, Started
from app.backoff import RetryPolicy
from app.outcome import AttemptResult
from app.verdict import settle

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One attempt of a chunk that was not delivered."""

    started: Started
    policy: RetryPolicy
    result: AttemptResult
    ended_at: float
    """Monotonic seconds. The delay counts from here, however long the rest of the chunk took."""


class AttemptsFailed(Exception):
    """Raised by the deliver actor when all attempts of its chunk have ended and some were not delivered."""

    def __init__(self, failures: list[FailedAttempt]) -> None:
        super().__init__(f"{len(failures)} attempts failed")
        self.failures = failures


class Retries(Middleware):
    """Settles failed attempts.

    Args:
        record: writes results and returns after their commit; called in the worker's thread.
        source: uniform on [0, 1), for the jitter.
    """

    def __init__(self, record: Callable[[list[Settled]], None], source: Callable[[], float] = random.random) -> None:
        self._record = record
        self._source = source

    @property
    def actor_options(self) -> set[str]:
        """`throws`: exceptions that Dramatiq is not to log as unexpected."""
        return {"throws"}

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        """Record where each failed delivery goes; the message is acknowledged after this returns.

        Any other exception means that the chunk was not worked on: the message is rejected, and the leases in Postgres
        bring its deliveries back.
        """
        if exception is None:
            return
        if not isinstance(exception, AttemptsFailed):
            message.fail()
            return
        try:
            self._record([self._settle(failure) for failure in exception.failures])
        except Exception as error:
            message.fail()
            log.error("results.lost", results=len(exception.failures), error=f"{type(error).__name__}: {error}"[:300])

    def _settle(self, failure: FailedAttempt) -> Settled:
        settled = settle(failure.started, failure.policy, failure.result, self._source)
        waited = monotonic() - failure.ended_at
        return replace(settled, delay_s=max(0.0, settled.delay_s - waited))
