"""The guard in front of bulk replays refuses exactly what it says, and names its numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Conflict, InvalidInput
from app.replay_guard import check_replay
from app.selection import Selector, estimate_s, make_selector


@pytest.mark.parametrize("concurrency", [0, -1, 11, 20])
def test_concurrency_above_ten_needs_its_switch(concurrency: int) -> None:
    with pytest.raises(InvalidInput, match=f"{concurrency} is not from 1 to 10"):
        check_replay(concurrency=concurrency, matched=1)


@pytest.mark.parametrize("concurrency", [0, 21, 100])
def test_twenty_is_the_end_even_with_the_switch(concurrency: int) -> None:
    with pytest.raises(InvalidInput, match=f"{concurrency} is not from 1 to 20"):
        check_replay(concurrency=concurrency, matched=1, allow_high=True, confirmed_large=True)


@pytest.mark.parametrize(
    ("concurrency", "matched", "changes", "refused"),
    [
        (10, 10_000, {"allow_high": True}, False),
        (11, 49, {"allow_high": True}, False),
        (11, 50, {"allow_high": True}, True),
        (20, 50, {"allow_high": True}, True),
        (20, 50, {"allow_high": True, "confirmed_large": True}, False),
        (20, 5, {"allow_high": True, "threshold": 5}, True),
        (20, 4, {"allow_high": True, "threshold": 5}, False),
    ],
)
def test_large_match_at_high_concurrency_needs_the_second_switch(
    concurrency: int, matched: int, changes: dict[str, Any], refused: bool
) -> None:
    if not refused:
        check_replay(concurrency=concurrency, matched=matched, **changes)
        return
    with pytest.raises(Conflict) as caught:
        check_replay(concurrency=concurrency, matched=matched, **changes)
    threshold = changes.get("threshold", 50)
    for said in (f"{matched} dead letters", f"concurrency is {concurrency}", f"threshold is {threshold}"):
        assert said in str(caught.value)
    assert "--confirm-large" in str(caught.value)
    assert caught.value.exit_code == 5


@given(st.integers(-5, 30), st.integers(0, 200), st.booleans(), st.booleans(), st.integers(1, 100))
def test_whatever_passes_is_small_or_was_asked_for_twice(
    concurrency: int, matched: int, allow_high: bool, confirmed: bool, threshold: int
) -> None:
    try:
        check_replay(
            concurrency=concurrency,
            matched=matched,
            allow_high=allow_high,
            confirmed_large=confirmed,
            threshold=threshold,
        )
    except (InvalidInput, Conflict):
        return
    assert 1 <= concurrency <= (20 if allow_high else 10)
    assert concurrency <= 10 or matched < threshold or confirmed


@pytest.mark.parametrize(
    "conditions",
    [
        {},
        {"nonsense": "x"},
        {"event_type": "*"},
        {"event_type": "in*oice"},
        {"request_id": ""},
        {"request_id": "a\0b"},
        {"http_status": 42},
        {"look_back_minutes": 0},
        {"after": "2026-01-01T00:00:00"},
        {"after": "2026-01-02T00:00:00Z", "before": "2026-01-01T00:00:00Z"},
        {"endpoint_id": "not an id"},
        {"run_id": "a", "job": "b"},
    ],
)
def test_selector_refuses(conditions: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        make_selector(**conditions)


def test_job_is_another_name_of_run() -> None:
    assert make_selector(job="nightly") == Selector(run_id="nightly")
    assert make_selector(job="nightly").given() == {"run_id": "nightly"}


def test_estimate_follows_the_slower_of_rate_and_concurrency() -> None:
    assert estimate_s(1000, 10, 10) == 100
    assert estimate_s(1000, 1000, 10) == 25
