"""The guard in front of every bulk replay: small by default, large only when somebody says so twice. Pure."""

from __future__ import annotations

from app.errors import Conflict, InvalidInput

#: Items under way at once, at most.
CONCURRENCY_CAP = 10
#: The same, for who asks for high concurrency.
CONCURRENCY_HIGH = 20
#: Matches from which high concurrency needs a second switch; HOMING_REPLAY_CONFIRM_THRESHOLD.
CONFIRM_THRESHOLD = 50


def check_concurrency(concurrency: int, *, allow_high: bool) -> None:
    """Whether so many items may be under way at once.

    Raises:
        InvalidInput: below 1, above 10 without `allow_high`, or above 20 with it.
    """
    cap = CONCURRENCY_HIGH if allow_high else CONCURRENCY_CAP
    if 1 <= concurrency <= cap:
        return
    switch = "" if allow_high else f"; up to {CONCURRENCY_HIGH} with --allow-high-concurrency"
    raise InvalidInput(f"concurrency: {concurrency} is not from 1 to {cap}{switch}")


def check_replay(
    *,
    concurrency: int,
    matched: int,
    allow_high: bool = False,
    confirmed_large: bool = False,
    threshold: int = CONFIRM_THRESHOLD,
) -> None:
    """Whether a replay of so many may be started.

    Args:
        concurrency: items under way at once.
        matched: dead letters that its selector matches.
        allow_high: the switch that allows a concurrency of 11 to 20.
        confirmed_large: the second switch.
        threshold: matches from which the second switch is needed, at a concurrency above 10; at least 1.

    Raises:
        InvalidInput: the concurrency or the threshold is out of range.
        Conflict: high concurrency and a large match, not confirmed. Says count, concurrency, threshold and switch.
    """
    if threshold < 1:
        raise InvalidInput(f"confirm threshold: {threshold} is not 1 or more")
    check_concurrency(concurrency, allow_high=allow_high)
    if concurrency > CONCURRENCY_CAP and matched >= threshold and not confirmed_large:
        raise Conflict(
            f"refused: {matched} dead letters match, concurrency is {concurrency} (above {CONCURRENCY_CAP}) and the "
            f"threshold is {threshold}; add --confirm-large, or lower --concurrency to {CONCURRENCY_CAP}"
        )
