from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.backoff import RetryPolicy, delay_s, exhausted, parse_retry_after
from app.errors import InvalidInput

NOW = datetime(2026, 11, 6, 8, 49, 37, tzinfo=UTC)
MINUTES = tuple(60.0 * minutes for minutes in (1, 2, 5, 15, 30, 60))


def middle() -> float:
    """The draw that jitters nothing."""
    return 0.5


policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 100),
    base_s=st.floats(0, 86_400),
    factor=st.floats(1, 100),
    cap_s=st.floats(0, 604_800),
    jitter=st.floats(0, 1),
    schedule_s=st.none() | st.lists(st.floats(0, 604_800), min_size=1, max_size=100).map(tuple),
)
draws = st.floats(0, 1, exclude_max=True)


def test_default_delays_grow_fourfold_up_to_an_hour() -> None:
    delays = [delay_s(RetryPolicy(), attempt, middle) for attempt in range(1, 8)]
    assert delays == [10, 40, 160, 640, 2560, 3600, 3600]


@given(policy=policies, attempt=st.integers(1, 10**6), draw=draws, asked=st.none() | st.floats(0, 1e30))
def test_delay_never_leaves_its_bounds(policy: RetryPolicy, attempt: int, draw: float, asked: float | None) -> None:
    delay = delay_s(policy, attempt, lambda: draw, asked)
    assert 0 <= delay <= policy.longest_s
    if asked is not None:
        assert delay >= min(asked, policy.longest_s)
        assert delay >= delay_s(policy, attempt, lambda: draw, None)


@given(policy=policies, attempt=st.integers(1, 50), draw=draws)
def test_jitter_stays_within_its_share(policy: RetryPolicy, attempt: int, draw: float) -> None:
    plain = delay_s(policy, attempt, middle)
    assert abs(delay_s(policy, attempt, lambda: draw) - plain) <= plain * policy.jitter * 1.000001 + 1e-9


def test_clamping_follows_jitter() -> None:
    policy = RetryPolicy(base_s=100, cap_s=100, jitter=0.5)
    assert delay_s(policy, 1, lambda: 0.999) == 100
    assert delay_s(policy, 1, lambda: 0.0) == 50


def test_jitter_spreads_evenly_over_both_sides() -> None:
    random = Random(7)
    delays = [delay_s(RetryPolicy(), 1, random.random) for _ in range(1000)]
    tenths = [sum(8 + 0.4 * n <= delay < 8.4 + 0.4 * n for delay in delays) for n in range(10)]
    assert all(60 <= count <= 140 for count in tenths)


def test_one_draw_per_delay() -> None:
    calls = []

    def draw() -> float:
        calls.append(1)
        return 0.25

    delay_s(RetryPolicy(), 3, draw, 5.0)
    assert len(calls) == 1


@pytest.mark.parametrize("attempt", [400, 10**6])
def test_huge_attempt_numbers_do_not_overflow(attempt: int) -> None:
    assert delay_s(RetryPolicy(), attempt, middle) == 3600
    assert delay_s(RetryPolicy(base_s=0), attempt, middle) == 0
    assert delay_s(RetryPolicy(factor=1), attempt, middle) == 10


def test_schedule_in_minutes_works_with_defaults_and_its_last_delay_repeats() -> None:
    policy = RetryPolicy.from_mapping({"schedule_s": list(MINUTES)})
    assert [delay_s(policy, attempt, middle) for attempt in range(1, 8)] == [*MINUTES, 3600]
    assert policy.max_attempts == 7


def test_schedule_beyond_the_cap_raises_it() -> None:
    policy = RetryPolicy(schedule_s=(7200.0,))
    assert delay_s(policy, 1, middle) == 7200
    assert delay_s(policy, 1, lambda: 0.999) == 7200
    assert delay_s(policy, 1, middle, 9999) == 7200


def test_retry_after_lengthens_up_to_the_cap_and_never_shortens() -> None:
    assert delay_s(RetryPolicy(), 1, middle, 25) == 25
    assert delay_s(RetryPolicy(), 1, middle, 3) == 10
    assert delay_s(RetryPolicy(), 1, middle, 1e9) == 3600


def test_policy_is_exhausted_after_its_last_attempt() -> None:
    assert [exhausted(RetryPolicy(max_attempts=2), attempts) for attempts in range(4)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7\t", 7.0),
        ("1000000000", 604800.0),
        (str(10**30), 604800.0),
        ("Fri, 06 Nov 2026 08:50:37 GMT", 60.0),
        ("Friday, 06-Nov-26 08:50:37 GMT", 60.0),
        ("Fri Nov  6 08:50:37 2026", 60.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 604800.0),
        ("Fri, 06 Nov 2026 08:48:37 GMT", None),
        (None, None),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e9", None),
        ("١٢", None),
        ("²", None),
        ("junk", None),
        ("Fri, 99 Nov 2026 99:99:99 GMT", None),
        ("Fri, 06 Nov 99999999999 08:50:37 GMT", None),
        ("9" * 5000, None),
        ("Fri" + ", " * 5000, None),
    ],
)
def test_retry_after_is_read_by_the_rules(value: str | None, expected: float | None) -> None:
    assert parse_retry_after(value, NOW) == expected


def test_retry_after_date_is_compared_across_time_zones() -> None:
    value = "Fri, 06 Nov 2026 08:50:37 GMT"
    assert parse_retry_after(value, NOW.astimezone(timezone(timedelta(hours=5)))) == 60
    assert parse_retry_after(value, NOW.replace(tzinfo=None)) == 60


@given(st.text(max_size=120))
def test_retry_after_never_raises(value: str) -> None:
    for text in (value, "Fri, " + value):
        wait = parse_retry_after(text, NOW)
        assert wait is None or 0 <= wait <= 604_800


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("max_attempts", value) for value in (0, 101, 5.0, True, "5", None)],
        *[("base_s", value) for value in (-1, 86_401, float("nan"), float("inf"), "1", True, None)],
        *[("factor", value) for value in (0.99, 101, float("nan"))],
        *[("cap_s", value) for value in (-1, 604_801)],
        *[("jitter", value) for value in (-0.1, 1.1)],
        *[("schedule_s", value) for value in ([], [1] * 101, [-1], [604_801], ["1"], "12", 5, {"a": 1})],
        ("max_atempts", 3),
    ],
)
def test_field_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=field):
        RetryPolicy.from_mapping({field: value})


def test_empty_mapping_is_the_default_policy() -> None:
    assert RetryPolicy.from_mapping({}) == RetryPolicy()
