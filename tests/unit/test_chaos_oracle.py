"""The fault suite's judge can say no: each invariant is broken on a made-up ledger, and must be named."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace

import pytest
from standardwebhooks.webhooks import Webhook

from workers.chaos.ledger import (
    Attempt,
    Delivery,
    Endpoint,
    Growth,
    Ledger,
    Mark,
    Move,
    Order,
    Request,
    Residue,
)
from workers.chaos.measure import parse
from workers.chaos.oracle import Judgement, Rules, judge
from workers.chaos.verify import signature_problem

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
BODY = '{"n": 1, "text": "ä"}'
NOW = 1_700_000_000.0
ORDER = Order("e1", "t1", "one.1", BODY, NOW)
ENDPOINT = Endpoint("p1", "first", "t1", ("one.1",), "standard", SECRET, (0.2, 0.5))
STRANGER = Endpoint("p2", "second", "t2", ("*",), "hex", SECRET)
RULES = Rules(audit={"endpoint.created": 2})


def signed(endpoint: Endpoint, at: float, body: str = BODY, event_id: str = "e1") -> dict[str, str]:
    stamp = str(int(at))
    key = base64.b64decode(endpoint.secret.removeprefix("whsec_"))
    if endpoint.scheme == "hex":
        mac = hmac.new(key, f"{stamp}.{body}".encode(), hashlib.sha256).hexdigest()
        return {"x-webhook-id": event_id, "x-webhook-timestamp": stamp, "x-webhook-signature": f"v1={mac}"}
    mac64 = base64.b64encode(hmac.new(key, f"{event_id}.{stamp}.{body}".encode(), hashlib.sha256).digest()).decode()
    return {"webhook-id": event_id, "webhook-timestamp": stamp, "webhook-signature": f"v1,{mac64}"}


def request(attempt: int, at: float, status: int | None, *, event_id: str = "e1", path: str = "first") -> Request:
    digest = hashlib.sha256(BODY.encode()).hexdigest()
    return Request(path, event_id, attempt, at, signed(ENDPOINT, at, event_id=event_id), digest, status)


def attempt(generation: int, number: int, at: float, outcome: str = "delivered", **fields: object) -> Attempt:
    given: dict[str, object] = {"failure_class": None, "http_status": 200, "retry_at": None} | fields
    return Attempt("d1", generation, number, at, 10, outcome, **given)  # type: ignore[arg-type]


def move(n: int, old: str, new: str, *, at: float, generation: int = 1, old_generation: int | None = None) -> Move:
    before = generation if old_generation is None else old_generation
    return Move(n, "d1", at, at, old, new, before, generation, at - 1)


def good() -> Ledger:
    """One event, one delivery: answered 503 first, then 200. Nothing is wrong with it."""
    return Ledger(
        orders=[ORDER],
        endpoints=[ENDPOINT, STRANGER],
        deliveries=[Delivery("d1", "t1", "e1", "p1", "delivered")],
        attempts=[
            attempt(1, 1, NOW, "transient", failure_class="http_status", http_status=503, retry_at=NOW + 0.25),
            attempt(2, 2, NOW + 0.3),
        ],
        moves=[
            move(1, "pending", "delivering", at=NOW),
            move(2, "delivering", "retry_scheduled", at=NOW + 0.02),
            move(3, "retry_scheduled", "retry_scheduled", at=NOW + 0.28, generation=2, old_generation=1),
            move(4, "retry_scheduled", "delivering", at=NOW + 0.3, generation=2),
            move(5, "delivering", "delivered", at=NOW + 0.32, generation=2),
        ],
        requests=[request(1, NOW + 0.01, 503), request(2, NOW + 0.31, 200)],
        audit={"endpoint.created": 2},
    )


def twice() -> Ledger:
    """A worker was killed after the answer: the first attempt is unknown, and the request came twice."""
    ledger = good()
    ledger.attempts[0] = attempt(1, 1, NOW, "unknown", http_status=None, retry_at=NOW + 0.25)
    ledger.requests[0] = request(1, NOW + 0.01, 200)
    return ledger


def test_nothing_is_wrong_with_a_good_ledger() -> None:
    found = judge(good(), RULES)
    assert found.violations == []
    assert (found.events, found.deliveries, found.requests, found.lost, found.phantom) == (1, 1, 2, 0, 0)


def never_answered(ledger: Ledger) -> None:
    ledger.requests[1] = request(2, NOW + 0.31, 500)


def without_a_delivery(ledger: Ledger) -> None:
    ledger.deliveries.clear()
    ledger.requests.clear()
    ledger.moves.clear()
    ledger.attempts.clear()


def stuck(ledger: Ledger) -> None:
    ledger.deliveries[0] = replace(ledger.deliveries[0], state="retry_scheduled")


def dead_without_a_letter(ledger: Ledger) -> None:
    ledger.deliveries[0] = replace(ledger.deliveries[0], state="dead_lettered")


def never_committed(ledger: Ledger) -> None:
    ledger.requests.append(request(1, NOW, 200, event_id="rolled-back"))


def to_a_stranger(ledger: Ledger) -> None:
    ledger.requests.append(request(1, NOW, 200, path="second"))


def delivery_for_a_stranger(ledger: Ledger) -> None:
    ledger.deliveries.append(Delivery("d2", "t1", "e1", "p2", "delivered"))


def again_and_nobody_says_so(ledger: Ledger) -> None:
    ledger.requests.append(request(2, NOW + 0.5, 200))


def no_attempt_row(ledger: Ledger) -> None:
    del ledger.attempts[1]
    ledger.requests[0] = request(1, NOW + 0.01, 503)


def backwards(ledger: Ledger) -> None:
    ledger.moves.append(move(6, "delivered", "delivering", at=NOW + 0.4, generation=2))


def out_of_nowhere(ledger: Ledger) -> None:
    del ledger.moves[1]


def generation_falls(ledger: Ledger) -> None:
    ledger.moves[3] = replace(ledger.moves[3], generation=1, old_generation=1)


def early(ledger: Ledger) -> None:
    ledger.attempts[1] = attempt(2, 2, NOW + 0.19)


def claimed_early(ledger: Ledger) -> None:
    ledger.moves[2] = replace(ledger.moves[2], old_due_at=NOW + 0.4)


def below_the_schedule(ledger: Ledger) -> None:
    ledger.attempts[0] = replace(ledger.attempts[0], retry_at=NOW + 0.1)


def badly_signed(ledger: Ledger) -> None:
    other = replace(ENDPOINT, secret="whsec_" + base64.b64encode(b"x" * 32).decode())
    ledger.requests[0] = replace(ledger.requests[0], headers=signed(other, NOW))


def unsigned(ledger: Ledger) -> None:
    ledger.requests[0] = replace(ledger.requests[0], headers={})


def old_signature(ledger: Ledger) -> None:
    ledger.requests[0] = replace(ledger.requests[0], headers=signed(ENDPOINT, NOW - 60))


def altered_body(ledger: Ledger) -> None:
    ledger.requests[0] = replace(ledger.requests[0], digest=hashlib.sha256(b"{}").hexdigest())


def across_tenants(ledger: Ledger) -> None:
    ledger.deliveries[0] = replace(ledger.deliveries[0], tenant="t2")


def act_without_audit(ledger: Ledger) -> None:
    ledger.audit = {"endpoint.created": 1}


def audit_without_act(ledger: Ledger) -> None:
    ledger.audit = {"endpoint.created": 2, "endpoint.disabled": 1}


def leftover_lease(ledger: Ledger) -> None:
    ledger.residue = Residue(leases=1)


def leftover_lock(ledger: Ledger) -> None:
    ledger.residue = Residue(locks=1)


def idle_transaction(ledger: Ledger) -> None:
    ledger.residue = Residue(idle_in_transaction_s=5.5)


def memory(ledger: Ledger) -> None:
    ledger.residue = Residue(growth=(Growth("worker-1", 65.0, 0),))


def descriptors(ledger: Ledger) -> None:
    ledger.residue = Residue(growth=(Growth("worker-1", 0.0, 11),))


def never_went_on(ledger: Ledger) -> None:
    ledger.marks = [Mark(NOW + 1, frozenset({"d1"}))]


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (never_answered, "I1 lost"),
        (without_a_delivery, "I1 lost"),
        (stuck, "I1 lost"),
        (dead_without_a_letter, "I1 lost"),
        (never_committed, "I2 phantom"),
        (to_a_stranger, "I2 phantom"),
        (delivery_for_a_stranger, "I2 phantom"),
        (again_and_nobody_says_so, "I3 unflagged duplicate"),
        (no_attempt_row, "I4 unrecorded request"),
        (backwards, "I5 backwards"),
        (out_of_nowhere, "I5 backwards"),
        (generation_falls, "I5 backwards"),
        (early, "I6 early"),
        (claimed_early, "I6 early"),
        (below_the_schedule, "I6 schedule"),
        (badly_signed, "I7 signature"),
        (unsigned, "I7 signature"),
        (old_signature, "I7 signature"),
        (altered_body, "I7 signature"),
        (across_tenants, "I8 tenants"),
        (act_without_audit, "I9 audit"),
        (audit_without_act, "I9 audit"),
        (leftover_lease, "I10 left over"),
        (leftover_lock, "I10 left over"),
        (idle_transaction, "I10 left over"),
        (memory, "I10 left over"),
        (descriptors, "I10 left over"),
        (never_went_on, "recovery"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_each_violation_is_seen_and_named(break_it: Callable[[Ledger], None], named: str) -> None:
    ledger = good()
    break_it(ledger)
    found = judge(ledger, RULES)
    assert [line for line in found.violations if line.startswith(named)], found.violations


def test_a_flagged_duplicate_needs_a_fault_to_explain_it() -> None:
    allowed = judge(twice(), replace(RULES, duplicates_max=1))
    assert (allowed.duplicates, allowed.duplicates_flagged, allowed.violations) == (1, 1, [])
    without_fault = judge(twice(), RULES)
    assert [line for line in without_fault.violations if line.startswith("I3 duplicates")]


def test_one_unknown_attempt_does_not_excuse_two_repeats() -> None:
    ledger = twice()
    ledger.requests.append(request(2, NOW + 0.5, 200))
    found = judge(ledger, replace(RULES, duplicates_max=9))
    assert (found.duplicates, found.duplicates_flagged) == (2, 1)
    assert [line for line in found.violations if line.startswith("I3 unflagged")]


def test_a_dead_letter_is_not_lost() -> None:
    ledger = good()
    ledger.deliveries[0] = replace(ledger.deliveries[0], state="dead_lettered", letters=1)
    assert judge(ledger, RULES).lost == 0


def recovered(marks: list[float], moves: list[Move], bar: float = 6.0) -> Judgement:
    ledger = good()
    ledger.moves, ledger.marks = moves, [Mark(at, frozenset({"d1"}) if at == marks[0] else frozenset()) for at in marks]
    return judge(ledger, replace(RULES, recovery_s=bar))


def test_a_slow_recovery_is_a_violation() -> None:
    moves = [move(1, "pending", "delivering", at=NOW), move(2, "delivering", "delivered", at=NOW + 8)]
    found = recovered([NOW + 1], moves)
    assert found.recoveries_s == [7.0]
    assert [line for line in found.violations if line.startswith("recovery")]


def test_the_clock_begins_anew_only_when_it_had_been_published_again() -> None:
    before = [
        move(1, "pending", "delivering", at=NOW),
        move(2, "delivering", "retry_scheduled", at=NOW + 4, generation=2, old_generation=1),
    ]
    after = [move(3, "retry_scheduled", "delivering", at=NOW + 8, generation=2)]
    # The second fault came when it lay in some worker's hands, the third before that.
    assert recovered([NOW, NOW + 5], [*before, *after]).recoveries_s == [3.0]
    assert recovered([NOW, NOW + 3], [*before, *after]).recoveries_s == [8.0]


def test_the_suites_own_check_of_signatures_agrees_with_the_reference() -> None:
    from datetime import UTC, datetime

    theirs = Webhook(SECRET).sign("e1", datetime.fromtimestamp(int(NOW), UTC), BODY)
    headers = {"webhook-timestamp": str(int(NOW)), "webhook-signature": theirs}
    seen = replace(request(1, NOW, 200), headers=headers)
    assert signature_problem(seen, ENDPOINT, BODY, 5) is None
    assert signature_problem(seen, ENDPOINT, BODY + " ", 5) is not None
    hex_seen = replace(seen, headers=signed(STRANGER, NOW))
    assert signature_problem(hex_seen, STRANGER, BODY, 5) is None


def test_metrics_are_summed_over_labels() -> None:
    assert parse('# HELP x y\nx_total{a="b c"} 2.0\nx_total{a="d"} 3\ny 1e3\n') == {"x_total": 5.0, "y": 1000.0}
