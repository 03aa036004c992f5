"""Where a delivery goes after an attempt. Pure: the attempt's result and the endpoint's policy in, what to write out."""

from __future__ import annotations

from collections.abc import Callable

from app.attempts import Settled, Started
from app.backoff import RetryPolicy, delay_s, exhausted
from app.outcome import AttemptResult, Outcome
from app.states import DeliveryState

#: Seconds until a delivery is tried again after a fault of our own (no file descriptors left, for example).
OWN_FAULT_DELAY_S = 5.0
#: The same for a fault that lasts until an operator has acted, which says so in `retry_after_s`; at most.
OWN_FAULT_DELAY_MAX_S = 120.0


def settle(started: Started, policy: RetryPolicy, result: AttemptResult, random: Callable[[], float]) -> Settled:
    """Decide what is recorded for an attempt.

    delivered -> delivered. transient -> retry_scheduled while the policy allows another attempt, else failed.
    gone, definite -> failed; gone also disables the endpoint. A fault of our own -> retry_scheduled, not counted.
    """
    delay = 0.0
    retryable = result.outcome is Outcome.TRANSIENT
    if result.outcome is Outcome.DELIVERED:
        state = DeliveryState.DELIVERED
    elif not result.counts:
        state, delay = DeliveryState.RETRY_SCHEDULED, _own_fault_delay_s(result) * (0.5 + random())
    elif retryable and not exhausted(policy, started.attempt):
        state = DeliveryState.RETRY_SCHEDULED
        delay = delay_s(policy, started.attempt, random, result.retry_after_s)
    else:
        state = DeliveryState.FAILED
    return Settled(
        delivery_id=started.delivery_id,
        generation=started.generation,
        next_state=state.value,
        delay_s=delay,
        outcome=result.outcome.value,
        failure_class=None if result.failure_class is None else result.failure_class.value,
        retryable=retryable,
        http_status=result.http_status,
        error=result.error,
        response_excerpt=result.response_excerpt,
        duration_ms=round(result.duration_s * 1000),
        counted=result.counts,
        disable_endpoint=result.outcome is Outcome.GONE,
    )


def _own_fault_delay_s(result: AttemptResult) -> float:
    return min(result.retry_after_s or OWN_FAULT_DELAY_S, OWN_FAULT_DELAY_MAX_S)
