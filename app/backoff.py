"""When the next attempt is made. Pure: no clock and no random source of its own.

Exponential: delay = min(cap, base * factor^(n-1)) after attempt n, then jitter of +-ratio, then clamped to [0, cap].
An explicit schedule replaces the first step. `Retry-After` can only lengthen a delay, up to the cap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any

from app.errors import InvalidInput

MAX_CAP_S = 604_800
"""Longest delay that a policy may ask for: a week."""
MAX_ATTEMPTS = 100
MAX_SCHEDULE = 100


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """One endpoint's retry policy.

    Attributes:
        max_attempts: automatic attempts, the first included; 1 to 100.
        base_s: delay after the first attempt, in seconds; 0 to 86,400.
        factor: growth from one delay to the next; 1 to 100.
        cap_s: longest delay, in seconds; 0 to 604,800.
        jitter: share by which a delay may be shorter or longer; 0 to 1.
        schedule_s: explicit delays in seconds, the n-th after attempt n, the last repeating; 1 to 100 of them, each 0
            to 604,800. When given, base, factor and cap play no part: the longest entry or `cap_s`, whichever is
            greater, is the cap.

    Raises:
        InvalidInput: naming the field that is out of range.
    """

    max_attempts: int = 5
    base_s: float = 10.0
    factor: float = 4.0
    cap_s: float = 3600.0
    jitter: float = 0.2
    schedule_s: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if type(self.max_attempts) is not int or not 1 <= self.max_attempts <= MAX_ATTEMPTS:
            raise InvalidInput(f"retry policy: max_attempts must be a whole number from 1 to {MAX_ATTEMPTS}")
        _check("base_s", self.base_s, 0, 86_400)
        _check("factor", self.factor, 1, 100)
        _check("cap_s", self.cap_s, 0, MAX_CAP_S)
        _check("jitter", self.jitter, 0, 1)
        if self.schedule_s is not None:
            if not isinstance(self.schedule_s, tuple) or not 1 <= len(self.schedule_s) <= MAX_SCHEDULE:
                raise InvalidInput(f"retry policy: schedule_s must have 1 to {MAX_SCHEDULE} delays")
            for delay in self.schedule_s:
                _check("schedule_s", delay, 0, MAX_CAP_S)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RetryPolicy:
        """A policy from JSON-like values; what is missing has its default.

        A schedule without `max_attempts` allows one attempt more than it has delays (at most 100), so that each of
        them is used.

        Raises:
            InvalidInput: naming the field that is unknown or out of range.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InvalidInput(f"retry policy: unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
        values = dict(values)
        schedule = values.get("schedule_s")
        if schedule is not None:
            if isinstance(schedule, str) or not isinstance(schedule, Sequence):
                raise InvalidInput("retry policy: schedule_s must be a list of delays in seconds")
            values["schedule_s"] = tuple(schedule)
            values.setdefault("max_attempts", max(1, min(len(schedule) + 1, MAX_ATTEMPTS)))
        return cls(**values)

    @property
    def longest_s(self) -> float:
        """No delay exceeds this many seconds, not even by jitter or `Retry-After`."""
        return self.cap_s if self.schedule_s is None else max(self.cap_s, *self.schedule_s)


def delay_s(
    policy: RetryPolicy, attempt: int, random: Callable[[], float], retry_after_s: float | None = None
) -> float:
    """Seconds from the end of attempt number `attempt` to the start of the next, within [0, `policy.longest_s`].

    Args:
        policy: the endpoint's.
        attempt: number of the attempt that has just failed; 1 is the first.
        random: uniform on [0, 1); called once, so that size and sign of the jitter are one draw.
        retry_after_s: what the receiver asked for; never shortens the delay.
    """
    cap = policy.longest_s
    delay = min(cap, _planned_s(policy, attempt))
    delay += delay * policy.jitter * (2 * random() - 1)
    delay = min(max(delay, 0.0), cap)
    if retry_after_s is not None:
        delay = max(delay, min(retry_after_s, cap))
    return delay


def exhausted(policy: RetryPolicy, attempts: int) -> bool:
    """Whether `attempts` made so far are all that the policy allows."""
    return attempts >= policy.max_attempts


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds to wait according to a `Retry-After` header; None when there is none or it is of no use.

    Understands delta-seconds and HTTP-date, RFC 9110 section 10.2.3. Negative, past and malformed values are None;
    values beyond a week are a week. Never raises.
    """
    if value is None or len(value) > 100:
        return None
    value = value.strip(" \t")
    if value.isascii() and value.isdigit():
        return float(min(int(value), MAX_CAP_S))
    if value[:3].isalpha():  # every HTTP-date begins with a day's name, RFC 9110 section 5.6.7
        try:
            until = parsedate_to_datetime(value)
            wait = (_aware(until) - _aware(now)).total_seconds()
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        return min(wait, float(MAX_CAP_S)) if wait > 0 else None
    return None


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _planned_s(policy: RetryPolicy, attempt: int) -> float:
    if policy.schedule_s is not None:
        return policy.schedule_s[min(max(attempt, 1), len(policy.schedule_s)) - 1]
    try:
        return policy.base_s * policy.factor ** max(attempt - 1, 0)
    except OverflowError:  # factor^n left the range of a float; with base 0 it would still be 0
        return policy.cap_s if policy.base_s else 0.0


def _check(name: str, value: Any, low: float, high: float) -> None:
    if type(value) not in (int, float) or not isfinite(value) or not low <= value <= high:
        raise InvalidInput(f"retry policy: {name} must be a number from {low:,} to {high:,}")
