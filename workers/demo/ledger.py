"""The judge: what was committed, read from the orders, against what the receiver wrote down.

It trusts neither the pipeline's states nor its statements: an order that an endpoint subscribes to must have been answered
2xx by that endpoint, while the caller listened; nothing else may have been sent.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

_EXPECTED = text(
    """
    SELECT p.name, o.id FROM orders o JOIN endpoints p
    ON EXISTS (SELECT FROM unnest(p.event_types) AS t WHERE o.event_type LIKE replace(t, '*', '%'))
    """
)

# Attempts whose answer Homing says it never saw: their worker died, or the call broke off. The receiver may have worked.
_UNANSWERED = text(
    """
    SELECT p.name, d.event_id::text AS webhook_id, a.number
    FROM delivery_attempts a JOIN deliveries d ON d.id = a.delivery_id JOIN endpoints p ON p.id = d.endpoint_id
    WHERE a.outcome = 'unknown' OR (a.outcome = 'transient' AND a.http_status IS NULL)
    """
)

_COUNTED = text(
    """
    SELECT (SELECT count(*) FROM orders) AS events, (SELECT count(*) FROM dead_letters) AS dead_lettered,
           (SELECT count(*) FROM replay_items WHERE state <> 'conflict') AS replayed
    """
)


@dataclass(frozen=True)
class Received:
    """One request, as the receiver wrote it down."""

    endpoint: str
    webhook_id: str
    attempt: int
    order_id: int | None
    signature_ok: bool
    status: int
    caller_waited: bool = True

    @property
    def accepted(self) -> bool:
        """Answered 2xx, whether or not the caller was still there to hear it."""
        return 200 <= self.status < 300


@dataclass(frozen=True)
class Facts:
    """What the database says when everything has ended."""

    expected: frozenset[tuple[str, int]]
    """Endpoint and order: what must have arrived."""
    unanswered: Mapping[tuple[str, str], Sequence[int]] = field(default_factory=dict)
    """Endpoint and webhook id -> numbers of the attempts that Homing itself recorded as not answered."""
    events: int = 0
    dead_lettered: int = 0
    replayed: int = 0


@dataclass(frozen=True)
class Ledger:
    """The result; the fields are the keys of `homing demo --json`, explained in its help."""

    transactions: int
    rolled_back: int
    events: int
    deliveries: int
    delivered: int
    retried: int
    dead_lettered: int
    replayed: int
    lost: int
    phantom: int
    duplicates: int
    duplicates_flagged: int
    signatures_bad: int
    seconds: float

    def as_dict(self) -> dict[str, int | float]:
        """For JSON."""
        return asdict(self)

    @property
    def faults(self) -> list[str]:
        """What must not be; empty when Homing kept its promise.

        A duplicate is no fault where Homing recorded that it had not seen the answer: at-least-once means that it must ask
        again. A duplicate of an answer that it did see is one.
        """
        silent = self.duplicates - self.duplicates_flagged
        told = (
            (self.lost, "committed but not delivered"),
            (self.phantom, "sent although nothing was committed for them"),
            (self.signatures_bad, "with a signature that does not verify"),
            (silent, "sent twice without a record that the first answer was missed"),
        )
        return [f"{number} {words}" for number, words in told if number > 0]


def compare(
    facts: Facts, received: Iterable[Received], *, transactions: int, rolled_back: int, seconds: float
) -> Ledger:
    """Hold what was received against what was committed.

    lost: committed (event, endpoint) pairs that were never answered 2xx to a caller that listened. phantom: requests for
    orders that were not committed, for endpoints that do not subscribe, or under a second id for the same order.
    duplicates: 2xx answers beyond the first for the same endpoint and id. duplicates_flagged: those of them that pair with
    an attempt that Homing recorded as not answered. signatures_bad: requests whose signature did not verify.
    """
    delivered: set[tuple[str, int]] = set()
    retried: set[tuple[str, int]] = set()
    id_of: dict[tuple[str, int], str] = {}
    answered: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    phantom = bad = 0
    for request in received:
        if not request.signature_ok:
            bad += 1
        if request.accepted:
            answered[request.endpoint, request.webhook_id].append(request.attempt)
        pair = (request.endpoint, -1 if request.order_id is None else request.order_id)
        if pair not in facts.expected or id_of.setdefault(pair, request.webhook_id) != request.webhook_id:
            phantom += 1
            continue
        if request.attempt > 1:
            retried.add(pair)
        if request.accepted and request.caller_waited:
            delivered.add(pair)
    duplicates = flagged = 0
    for key, attempts in answered.items():
        extra = len(attempts) - 1
        duplicates += extra
        flagged += min(extra, (Counter(attempts) & Counter(facts.unanswered.get(key, ()))).total())
    return Ledger(
        transactions=transactions,
        rolled_back=rolled_back,
        events=facts.events,
        deliveries=len(facts.expected),
        delivered=len(delivered),
        retried=len(retried),
        dead_lettered=facts.dead_lettered,
        replayed=facts.replayed,
        lost=len(facts.expected) - len(delivered),
        phantom=phantom,
        duplicates=duplicates,
        duplicates_flagged=flagged,
        signatures_bad=bad,
        seconds=round(seconds, 1),
    )


async def read_facts(engine: AsyncEngine) -> Facts:
    """Ask the database, after the last process that writes to it has stopped."""
    async with engine.connect() as connection:
        counted = (await connection.execute(_COUNTED)).one()
        expected = frozenset((r.name, r.id) for r in await connection.execute(_EXPECTED))
        unanswered: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for r in await connection.execute(_UNANSWERED):
            unanswered[r.name, r.webhook_id].append(r.number)
    return Facts(expected, unanswered, **counted._mapping)


def read_received(path: Path) -> list[Received]:
    """What the receiver wrote down, oldest first."""
    keep = Received.__dataclass_fields__
    with path.open(encoding="utf-8") as file:
        return [Received(**{name: value for name, value in json.loads(line).items() if name in keep}) for line in file]
