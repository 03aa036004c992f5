from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.attempts import Started
from app.backoff import RetryPolicy
from app.outcome import AttemptResult, FailureClass, Outcome
from app.verdict import OWN_FAULT_DELAY_MAX_S, OWN_FAULT_DELAY_S, settle

POLICY = RetryPolicy(max_attempts=3, base_s=10, factor=4, cap_s=100, jitter=0)
OWN_FAULT = AttemptResult(Outcome.TRANSIENT, FailureClass.OWN_FAULT)


def started(attempt: int = 1) -> Started:
    return Started(
        delivery_id=uuid4(),
        generation=7,
        tenant_id="default",
        event_id=uuid4(),
        endpoint_id=uuid4(),
        endpoint_version=1,
        attempt=attempt,
        replays=0,
        body="{}",
        headers=None,
        event_type="a.b",
        request_id="r",
        traceparent=None,
        committed_at=None,
        started_at=datetime.now(UTC),
    )


def half() -> float:
    return 0.5


@pytest.mark.parametrize(
    ("result", "attempt", "state", "delay_s", "retryable"),
    [
        (AttemptResult(Outcome.DELIVERED), 1, "delivered", 0, False),
        (AttemptResult(Outcome.DELIVERED), 3, "delivered", 0, False),
        (AttemptResult(Outcome.TRANSIENT, FailureClass.TIMEOUT), 1, "retry_scheduled", 10, True),
        (AttemptResult(Outcome.TRANSIENT, FailureClass.TIMEOUT), 2, "retry_scheduled", 40, True),
        (AttemptResult(Outcome.TRANSIENT, FailureClass.TIMEOUT), 3, "failed", 0, True),
        (AttemptResult(Outcome.TRANSIENT, FailureClass.HTTP_STATUS, 429, 60), 1, "retry_scheduled", 60, True),
        (AttemptResult(Outcome.TRANSIENT, FailureClass.HTTP_STATUS, 429, 1e9), 1, "retry_scheduled", 100, True),
        (AttemptResult(Outcome.DEFINITE, FailureClass.HTTP_STATUS, 404), 1, "failed", 0, False),
        (AttemptResult(Outcome.GONE, FailureClass.GONE, 410), 1, "failed", 0, False),
        (OWN_FAULT, 1, "retry_scheduled", OWN_FAULT_DELAY_S, True),
        (OWN_FAULT, 3, "retry_scheduled", OWN_FAULT_DELAY_S, True),
    ],
)
def test_result_and_attempt_decide_where_a_delivery_goes(
    result: AttemptResult, attempt: int, state: str, delay_s: float, retryable: bool
) -> None:
    settled = settle(started(attempt), POLICY, result, half)
    assert (settled.next_state, settled.delay_s, settled.retryable) == (state, delay_s, retryable)


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.UNKNOWN])
def test_only_gone_disables_the_endpoint(outcome: Outcome) -> None:
    settled = settle(started(), POLICY, AttemptResult(outcome, FailureClass.HTTP_STATUS), half)
    assert settled.disable_endpoint is (outcome is Outcome.GONE)


def test_only_a_fault_of_our_own_is_not_counted() -> None:
    assert not settle(started(), POLICY, OWN_FAULT, half).counted
    assert all(
        settle(started(), POLICY, AttemptResult(Outcome.TRANSIENT, c), half).counted
        for c in FailureClass
        if c is not FailureClass.OWN_FAULT
    )


def test_everything_known_of_the_attempt_is_recorded() -> None:
    begun = started()
    result = AttemptResult(Outcome.TRANSIENT, FailureClass.HTTP_STATUS, 503, None, "answered 503", "busy", 1.2345)
    settled = settle(begun, POLICY, result, half)
    assert (settled.delivery_id, settled.generation) == (begun.delivery_id, 7)
    assert (settled.outcome, settled.failure_class, settled.http_status) == ("transient", "http_status", 503)
    assert (settled.error, settled.response_excerpt, settled.duration_ms) == ("answered 503", "busy", 1234)


@given(
    st.sampled_from([o for o in Outcome if o is not Outcome.UNKNOWN]),
    st.sampled_from(list(FailureClass)),
    st.none() | st.floats(0, 1e12),
    st.integers(1, 200),
    st.floats(0, 1, exclude_max=True),
)
def test_delay_is_within_the_policy_and_only_retries_have_one(
    outcome: Outcome, failure: FailureClass, retry_after_s: float | None, attempt: int, draw: float
) -> None:
    result = AttemptResult(outcome, failure, retry_after_s=retry_after_s)
    settled = settle(started(attempt), POLICY, result, lambda: draw)
    assert settled.next_state in ("delivered", "retry_scheduled", "failed")
    if settled.next_state == "retry_scheduled":
        longest_s = POLICY.longest_s if settled.counted else 1.5 * OWN_FAULT_DELAY_MAX_S
        assert 0 <= settled.delay_s <= longest_s
    else:
        assert settled.delay_s == 0
