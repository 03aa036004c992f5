"""One line broken at a time, and the tests that must notice: a list to extend with every guard that is written."""

from __future__ import annotations

from typing import NamedTuple


class Breakage(NamedTuple):
    """`old` stands in `file` exactly once, and becomes `new`; `tests` are arguments of pytest."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_TRANSITIONS = "tests/integration/test_transitions.py"
_RACES = "tests/integration/test_races.py"
_TRANSPORT = "tests/integration/test_transport.py"
_INTAKE = "tests/integration/test_intake.py"
_MOVES = f"{_TRANSITIONS}::test_statement_moves_legal_states_and_writes_nothing_in_others"

BREAKAGES = (
    # --- the fence and the states -----------------------------------------------------------------------------------
    Breakage(
        "a result is recorded under any generation",
        "app/attempts.py",
        "AND d.generation = r.generation AND d.state = 'delivering'",
        "AND d.state = 'delivering'",
        (f"{_TRANSITIONS}::test_stale_generation_writes_nothing", "-k", "deliver or fail"),
    ),
    Breakage(
        "a result is recorded in any state",
        "app/attempts.py",
        "AND d.generation = r.generation AND d.state = 'delivering'",
        "AND d.generation = r.generation",
        (f"{_RACES}::test_same_result_recorded_twice_at_once_is_written_once",),
    ),
    Breakage(
        "an attempt starts in any state",
        "app/attempts.py",
        "AND d.state IN ('pending', 'retry_scheduled', 'replayed') AND d.lease_owner IS NOT NULL\n          AND (SELECT",
        "AND d.lease_owner IS NOT NULL\n          AND (SELECT",
        (f"{_RACES}::test_exactly_one_of_several_starts_wins",),
    ),
    Breakage(
        "an attempt starts although its endpoint is paused",
        "app/attempts.py",
        "AND (SELECT p.status FROM endpoints p WHERE p.id = d.endpoint_id) = 'active'",
        "",
        (_MOVES, "-k", "start_of_paused"),
    ),
    Breakage(
        "an attempt is counted where it is claimed",
        "app/claims.py",
        "generation = d.generation + 1,",
        "generation = d.generation + 1, attempts = d.attempts + 1,",
        (f"{_TRANSITIONS}::test_expired_lease_is_recorded_as_unknown_attempt_and_counts",),
    ),
    Breakage(
        "an attempt is not counted where it starts",
        "app/attempts.py",
        "attempts = d.attempts + 1, last_attempt_at",
        "last_attempt_at",
        (f"{_TRANSITIONS}::test_only_a_start_counts_an_attempt",),
    ),
    Breakage(
        "a fault of our own uses up an attempt",
        "app/attempts.py",
        "attempts = d.attempts - (NOT r.counted)::integer",
        "attempts = d.attempts",
        (f"{_TRANSITIONS}::test_uncounted_result_gives_the_attempt_back_and_is_kept",),
    ),
    Breakage(
        "a replay carries on from any state",
        "app/replay_batches.py",
        "AND b.state IN ('failed', 'dead_lettered')",
        "",
        (f"{_TRANSITIONS}::test_replay_moves_failed_and_dead_lettered_only",),
    ),
    # --- claims ------------------------------------------------------------------------------------------------------
    Breakage(
        "what is not due is claimed",
        "app/claims.py",
        "WHERE due_at <= now()",
        "WHERE due_at IS NOT NULL",
        (_MOVES, "-k", "claim_not_due"),
    ),
    Breakage(
        "expired leases are never published again",
        "app/claims.py",
        "WHERE due_at <= now()",
        "WHERE due_at <= now() AND state <> 'delivering'",
        (f"{_TRANSITIONS}::test_expired_lease_is_recorded_as_unknown_attempt_and_counts",),
    ),
    Breakage(
        "a delivery that kills its workers is never quarantined",
        "app/claims.py",
        "WHEN due.unknown_streak + 1 >= :quarantine_after THEN 'failed'",
        "",
        (f"{_TRANSITIONS}::test_expired_lease_goes_where_attempts_and_streak_say",),
    ),
    Breakage(
        "a poller gives back what another one holds",
        "app/claims.py",
        "AND d.lease_owner = :owner AND d.state",
        "AND CAST(:owner AS text) IS NOT NULL AND d.state",
        (f"{_TRANSITIONS}::test_release_by_another_owner_writes_nothing",),
    ),
    # --- intake ------------------------------------------------------------------------------------------------------
    Breakage(
        "the outbox is read from the last id on",
        "app/intake.py",
        "{_MEASURED} ORDER BY o.id LIMIT",
        "{_MEASURED} WHERE o.id > ALL (SELECT id FROM events) ORDER BY o.id LIMIT",
        (f"{_INTAKE}::test_transaction_that_commits_after_a_thousand_newer_ones_is_not_skipped",),
    ),
    Breakage(
        "a poller waits for the rows of another",
        "app/intake.py",
        "LIMIT :limit FOR UPDATE SKIP LOCKED",
        "LIMIT :limit FOR UPDATE",
        (f"{_INTAKE}::test_takers_at_once_never_share_a_row_and_never_wait",),
    ),
    Breakage(
        "the idempotency key is ignored",
        "app/intake.py",
        "WHERE e.duplicate_of IS NULL",
        "WHERE true",
        ("tests/integration/test_idempotency_keys.py::test_same_key_within_one_batch_counts_once",),
    ),
    # --- the schedule ------------------------------------------------------------------------------------------------
    Breakage(
        "no jitter",
        "app/backoff.py",
        "delay += delay * policy.jitter * (2 * random() - 1)",
        "random()",
        ("tests/unit/test_backoff.py::test_jitter_spreads_evenly_over_both_sides",),
    ),
    Breakage(
        "jitter leaves the cap",
        "app/backoff.py",
        "delay = min(max(delay, 0.0), cap)",
        "delay = max(delay, 0.0)",
        ("tests/unit/test_backoff.py::test_clamping_follows_jitter",),
    ),
    Breakage(
        "a 4xx is tried again",
        "app/outcome.py",
        "return Outcome.GONE if status == 410 else Outcome.DEFINITE",
        "return Outcome.GONE if status == 410 else Outcome.TRANSIENT",
        ("tests/unit/test_outcome.py::test_every_status_has_the_outcome_of_the_table",),
    ),
    # --- the call ----------------------------------------------------------------------------------------------------
    Breakage(
        "redirects are followed",
        "app/transport.py",
        "allow_redirects=False",
        "allow_redirects=True",
        (f"{_TRANSPORT}::test_redirect_is_definite_and_its_target_never_visited",),
    ),
    Breakage(
        "the whole body is read",
        "app/transport.py",
        "received += await content.read(self._read_bytes - len(received))",
        "received += await content.read()",
        (f"{_TRANSPORT}::test_memory_stays_bounded", "-k", "64-MiB"),
    ),
    Breakage(
        "the body is decompressed",
        "app/transport.py",
        "auto_decompress=False",
        "auto_decompress=True",
        (f"{_TRANSPORT}::test_body_is_never_decompressed",),
    ),
    Breakage(
        "the address that is dialled is not judged",
        "app/connector.py",
        "    judge(str(target[0]), int(target[1]))\n",
        "",
        (f"{_TRANSPORT}::test_blocked_address_is_definite_and_named_without_its_address",),
    ),
    # --- signatures and secrets --------------------------------------------------------------------------------------
    Breakage(
        "something like the body is signed",
        "workers/deliver.py",
        "str(started.event_id), timestamp, body)",
        "str(started.event_id), timestamp, body.replace(b' ', b''))",
        (
            "tests/integration/test_secret_rotation.py::test_both_keys_sign_during_the_overlap_and_only_the_new_one_afterwards",
        ),
    ),
    Breakage(
        "a worker signs with a key that has expired",
        "workers/endpoint_cache.py",
        " or _key_expired(known, attempt)",
        "",
        ("tests/integration/test_secret_rotation.py::test_the_cache_loads_again_from_the_moment_that_a_key_expires",),
    ),
    Breakage(
        "a sealed secret opens in another row",
        "app/sealing.py",
        "return head[: 1 + _KEY_ID_BYTES] + context.encode()",
        "return head[: 1 + _KEY_ID_BYTES]",
        ("tests/unit/test_sealing.py",),
    ),
    # --- the order of things -----------------------------------------------------------------------------------------
    Breakage(
        "a message is acknowledged before its result is committed",
        "workers/recorder.py",
        "return await future",
        "return future is not None",
        ("tests/integration/test_recorder.py::test_waiter_goes_on_only_after_the_commit",),
    ),
)
