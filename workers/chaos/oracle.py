"""The judge. A ledger and the scenario's rules in, figures and violations out. Pure; knows nothing of the code it judges.

Lost: an event that was committed, for an endpoint that subscribes to it, and that neither was answered 2xx by that endpoint
while Homing calls it delivered, nor is in the dead letters. Phantom: a request or a delivery that no committed event asks
for. Duplicate: a request after one that was answered 2xx, or after an attempt without a recorded result; it is flagged when
Homing itself says of an earlier attempt that it does not know its answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from workers.chaos.ledger import Attempt, Delivery, Endpoint, Ledger, Mark, Move, Request
from workers.chaos.verify import body_digest, signature_problem

#: What a state may become. A claim changes the generation and keeps the state.
FORWARD = {
    "pending": {"pending", "delivering", "failed"},
    "delivering": {"delivered", "retry_scheduled", "failed"},
    "delivered": set(),
    "retry_scheduled": {"retry_scheduled", "delivering", "failed"},
    "failed": {"failed", "dead_lettered", "replayed"},
    "dead_lettered": {"replayed"},
    "replayed": {"replayed", "delivering", "failed"},
}
EARLY_S = 0.05
JITTER = 0.2
RSS_GROWTH_MIB = 64.0
DESCRIPTORS_GROWTH = 10
IDLE_IN_TRANSACTION_S = 5.0
#: Violations of one kind that are spelled out; the rest is counted.
SPELLED_OUT = 3


@dataclass(frozen=True)
class Rules:
    """What a scenario allows."""

    duplicates_max: int = 0
    signature_age_s: float = 5.0
    recovery_s: float | None = None
    audit: dict[str, int] = field(default_factory=dict)
    may_miss: frozenset[str] = frozenset()
    """Endpoints that stop being active in the scenario: an event without a delivery for them is not lost."""


@dataclass
class Judgement:
    """Figures, and what is wrong; nothing wrong is an empty list."""

    events: int = 0
    deliveries: int = 0
    requests: int = 0
    lost: int = 0
    phantom: int = 0
    duplicates: int = 0
    duplicates_flagged: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


def judge(ledger: Ledger, rules: Rules) -> Judgement:
    """Check every invariant."""
    facts = _Facts(ledger)
    found = Judgement(len(ledger.orders), len(ledger.deliveries), len(ledger.requests))
    problems: list[tuple[str, str]] = []
    lost = list(_lost(facts, rules))
    phantom = list(_phantom(facts))
    found.lost, found.phantom = len(lost), len(phantom)
    problems += [("I1 lost", text) for text in lost] + [("I2 phantom", text) for text in phantom]
    found.duplicates, found.duplicates_flagged, unflagged = _duplicates(facts)
    problems += [("I3 unflagged duplicate", text) for text in unflagged]
    if found.duplicates > rules.duplicates_max:
        problems.append(("I3 duplicates", f"{found.duplicates}, and at most {rules.duplicates_max} can be explained"))
    for name, check in _CHECKS.items():
        problems += [(name, text) for text in check(facts, rules)]
    found.recoveries_s, never = _recoveries(ledger.moves, ledger.marks)
    problems += [("recovery", text) for text in never]
    if rules.recovery_s is not None and (slow := [s for s in found.recoveries_s if s > rules.recovery_s]):
        problems.append(("recovery", f"{len(slow)} took over {rules.recovery_s:g} s, the longest {max(slow):.2f} s"))
    found.violations = _summed_up(problems)
    return found


class _Facts:
    """The ledger, by key."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.orders = {order.event_id: order for order in ledger.orders}
        self.endpoints = {endpoint.id: endpoint for endpoint in ledger.endpoints}
        self.by_name = {endpoint.name: endpoint for endpoint in ledger.endpoints}
        self.expected = {
            (order.event_id, endpoint.id)
            for order in ledger.orders
            for endpoint in ledger.endpoints
            if endpoint.tenant == order.tenant and _subscribes(endpoint, order.event_type)
        }
        self.deliveries = {(d.event_id, d.endpoint_id): d for d in ledger.deliveries}
        self.attempts: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in ledger.attempts:
            self.attempts[attempt.delivery_id].append(attempt)
        self.requests: dict[tuple[str, str], list[Request]] = defaultdict(list)
        for request in sorted(ledger.requests, key=lambda r: r.at):
            endpoint = self.by_name.get(request.endpoint)
            self.requests[request.webhook_id, endpoint.id if endpoint else request.endpoint].append(request)

    def delivery_of(self, key: tuple[str, str]) -> Delivery | None:
        return self.deliveries.get(key)


def _subscribes(endpoint: Endpoint, event_type: str) -> bool:
    return any(
        pattern in ("*", event_type) or (pattern.endswith(".*") and event_type.startswith(pattern[:-1]))
        for pattern in endpoint.event_types
    )


def _accepted(request: Request) -> bool:
    return request.status is not None and 200 <= request.status <= 299


def _lost(facts: _Facts, rules: Rules) -> Iterator[str]:
    for key in sorted(facts.expected):
        delivery, name = facts.delivery_of(key), facts.endpoints[key[1]].name
        if delivery is None:
            if name not in rules.may_miss:
                yield f"event {key[0]} has no delivery for {name}"
        elif delivery.state == "dead_lettered":
            if not delivery.letters:
                yield f"delivery {delivery.id} is dead-lettered, and there is no dead letter"
        elif delivery.state != "delivered":
            yield f"delivery {delivery.id} for {name} ended as {delivery.state}"
        elif not any(_accepted(r) for r in facts.requests.get(key, ())):
            yield f"delivery {delivery.id} is called delivered, and {name} never answered 2xx"


def _phantom(facts: _Facts) -> Iterator[str]:
    for key in facts.requests:
        if key not in facts.expected:
            why = "another endpoint's event" if key[0] in facts.orders else "an event that was never committed"
            yield f"request {key[0]} at {key[1]} is {why}"
    for key, delivery in facts.deliveries.items():
        if key not in facts.expected:
            yield f"delivery {delivery.id} is of an event or for an endpoint that does not match"


def _duplicates(facts: _Facts) -> tuple[int, int, list[str]]:
    duplicates = flagged = 0
    unflagged: list[str] = []
    for key, requests in facts.requests.items():
        delivery = facts.delivery_of(key)
        recorded = facts.attempts.get(delivery.id, []) if delivery else []
        repeats = _repeats(requests, recorded)
        in_doubt = sum(_in_doubt(attempt) for attempt in recorded)
        duplicates += repeats
        flagged += min(repeats, in_doubt)
        if repeats > in_doubt:
            unflagged.append(
                f"{key[0]} came {repeats} times too often, and {in_doubt} attempts are recorded as in doubt"
            )
    return duplicates, flagged, unflagged


def _repeats(requests: list[Request], recorded: list[Attempt]) -> int:
    """Requests after one that was accepted, or after one whose attempt has no recorded result."""
    results = {attempt.number: attempt.outcome for attempt in recorded}
    repeats, before = 0, False
    for request in requests:
        repeats += before
        before = before or _accepted(request) or results.get(request.attempt, "unknown") == "unknown"
    return repeats


def _in_doubt(attempt: Attempt) -> bool:
    return attempt.outcome == "unknown" or (attempt.outcome == "transient" and attempt.http_status is None)


def _unrecorded(facts: _Facts, rules: Rules) -> Iterator[str]:
    for key, requests in facts.requests.items():
        delivery = facts.delivery_of(key)
        if delivery is not None:
            numbers = {attempt.number for attempt in facts.attempts.get(delivery.id, ())}
            for request in requests:
                if request.attempt not in numbers:
                    yield f"request {key[0]}, attempt {request.attempt}, has no attempt row"


def _backwards(facts: _Facts, rules: Rules) -> Iterator[str]:
    last: dict[str, Move] = {}
    for move in facts.ledger.moves:
        if move.state not in FORWARD[move.old_state]:
            yield f"delivery {move.delivery_id} went from {move.old_state} to {move.state}"
        before = last.get(move.delivery_id)
        if move.generation < move.old_generation or (before and before.generation > move.old_generation):
            yield f"delivery {move.delivery_id}: generation {move.generation} after {move.old_generation}"
        if before and before.state != move.old_state:
            yield f"delivery {move.delivery_id} went from {move.old_state}, but was {before.state}"
        last[move.delivery_id] = move


def _early(facts: _Facts, rules: Rules) -> Iterator[str]:
    for delivery_id, attempts in facts.attempts.items():
        for attempt, following in pairwise(attempts):
            if attempt.retry_at is not None and following.started_at < attempt.retry_at - EARLY_S:
                early = attempt.retry_at - following.started_at
                yield f"delivery {delivery_id}: attempt {following.number} began {early:.3f} s before its time"
    for move in facts.ledger.moves:
        claimed = move.generation > move.old_generation and move.state != "replayed"
        if claimed and move.old_due_at is not None and move.began < move.old_due_at - EARLY_S:
            yield f"delivery {move.delivery_id} was claimed {move.old_due_at - move.began:.3f} s before it was due"


def _below_schedule(facts: _Facts, rules: Rules) -> Iterator[str]:
    for delivery in facts.ledger.deliveries:
        endpoint = facts.endpoints.get(delivery.endpoint_id)
        if endpoint is None or endpoint.schedule_s is None:
            continue
        for attempt in facts.attempts.get(delivery.id, ()):
            if attempt.outcome != "transient" or attempt.retry_at is None or attempt.failure_class == "own_fault":
                continue
            planned = endpoint.schedule_s[min(attempt.number, len(endpoint.schedule_s)) - 1]
            least = attempt.started_at + (attempt.duration_ms or 0) / 1000 + planned * (1 - JITTER)
            if attempt.retry_at < least - EARLY_S:
                yield f"delivery {delivery.id}: retry {attempt.number} was scheduled {least - attempt.retry_at:.3f} s too early"


def _badly_signed(facts: _Facts, rules: Rules) -> Iterator[str]:
    for (event_id, endpoint_id), requests in facts.requests.items():
        order, endpoint = facts.orders.get(event_id), facts.endpoints.get(endpoint_id)
        if order is None or endpoint is None:
            continue
        for request in requests:
            if request.digest != body_digest(order.body):
                yield f"request {event_id} at {endpoint.name}: its body is not the payload that was committed"
            elif why := signature_problem(request, endpoint, order.body, rules.signature_age_s):
                yield f"request {event_id} at {endpoint.name}: {why}"


def _across_tenants(facts: _Facts, rules: Rules) -> Iterator[str]:
    for delivery in facts.ledger.deliveries:
        order, endpoint = facts.orders.get(delivery.event_id), facts.endpoints.get(delivery.endpoint_id)
        if order and endpoint and not order.tenant == endpoint.tenant == delivery.tenant:
            yield f"delivery {delivery.id} crosses tenants"


def _audit(facts: _Facts, rules: Rules) -> Iterator[str]:
    for action in sorted(rules.audit.keys() | facts.ledger.audit.keys()):
        wanted, there = rules.audit.get(action, 0), facts.ledger.audit.get(action, 0)
        if wanted != there:
            yield f"{action}: {there} rows for {wanted} acts"


def _left_over(facts: _Facts, rules: Rules) -> Iterator[str]:
    left = facts.ledger.residue
    for number, what in (
        (left.outbox, "rows in the outbox"),
        (left.open_deliveries, "deliveries that are not at their end"),
        (left.leases, "leases"),
        (left.locks, "locks"),
    ):
        if number:
            yield f"{number} {what}"
    if left.idle_in_transaction_s > IDLE_IN_TRANSACTION_S:
        yield f"a transaction idle for {left.idle_in_transaction_s:.1f} s"
    for growth in left.growth:
        if growth.rss_mib > RSS_GROWTH_MIB:
            yield f"{growth.name} grew by {growth.rss_mib:.0f} MiB"
        if growth.descriptors > DESCRIPTORS_GROWTH:
            yield f"{growth.name} holds {growth.descriptors} descriptors more"


_CHECKS: dict[str, Callable[[_Facts, Rules], Iterator[str]]] = {
    "I4 unrecorded request": _unrecorded,
    "I5 backwards": _backwards,
    "I6 early": _early,
    "I6 schedule": _below_schedule,
    "I7 signature": _badly_signed,
    "I8 tenants": _across_tenants,
    "I9 audit": _audit,
    "I10 left over": _left_over,
}


def _recoveries(moves: list[Move], marks: list[Mark]) -> tuple[list[float], list[str]]:
    """For each fault and each delivery that it hit: seconds until that was under way again, or at its end.

    The clock begins anew at a later fault when the delivery had been published again before that, and not started: it may
    have been in the hands of what was killed.
    """
    steps: dict[str, list[float]] = defaultdict(list)
    claims: dict[str, list[float]] = defaultdict(list)
    for move in moves:
        if move.state in ("delivering", "delivered", "failed", "dead_lettered") and move.state != move.old_state:
            steps[move.delivery_id].append(move.at)
        elif move.generation > move.old_generation:
            claims[move.delivery_id].append(move.at)
    seconds: list[float] = []
    never: list[str] = []
    for mark in marks:
        for delivery_id in mark.deliveries:
            after = [at for at in steps[delivery_id] if at > mark.at]
            if not after:
                never.append(f"delivery {delivery_id} never went on")
                continue
            published = min((at for at in claims[delivery_id] if at > mark.at), default=after[0])
            began = max([mark.at, *(m.at for m in marks if published < m.at < after[0])])
            seconds.append(after[0] - began)
    return sorted(seconds), never


def _summed_up(problems: list[tuple[str, str]]) -> list[str]:
    counts = Counter(kind for kind, _ in problems)
    lines: list[str] = []
    for kind, count in counts.items():
        lines += [f"{kind}: {text}" for k, text in problems if k == kind][:SPELLED_OUT]
        if count > SPELLED_OUT:
            lines.append(f"{kind}: and {count - SPELLED_OUT} more")
    return lines
