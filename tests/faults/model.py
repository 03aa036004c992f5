"""What Homing's tables should hold, kept in plain Python from the documented states alone: the oracle of the state machine.

Nothing of `app` is imported. Times are not modelled but for what is due: `due` is None (there is nothing more to do),
NEVER (parked), or seconds ahead of the moment at which it was set; 0 and less is due now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from uuid import UUID

NEVER = inf
LEASE_S = 3000.0
RETRY_S = 600.0
QUARANTINE_AFTER = 2
STARTABLE = ("pending", "retry_scheduled", "replayed")
OVER = ("failed", "dead_lettered")

Ticket = tuple[UUID, int]


@dataclass
class Endpoint:
    id: UUID
    types: tuple[str, ...]
    max_attempts: int
    status: str = "active"


@dataclass
class Delivery:
    event: UUID
    endpoint: Endpoint
    request_id: str
    state: str = "pending"
    due: float | None = 0.0
    generation: int = 0
    owner: str | None = None
    attempts: int = 0
    streak: int = 0
    replays: int = 0
    made: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Attempt rows: generation -> number, outcome (`quarantined` in place of the last unknown one)."""
    letters: dict[int, str] = field(default_factory=dict)
    """Dead letters: generation -> status."""

    @property
    def is_due(self) -> bool:
        return self.due is not None and self.due <= 0


@dataclass
class Replay:
    request_id: str
    reason: str
    key: str | None
    items: dict[UUID, str]
    state: str = "requested"
    due: float | None = 0.0
    generation: int = 0


@dataclass
class Row:
    """One committed outbox row."""

    event_type: str
    request_id: str
    key: str | None
    tenant: str


@dataclass
class World:
    endpoints: dict[UUID, Endpoint]
    outbox: dict[UUID, Row] = field(default_factory=dict)
    events: dict[UUID, UUID | None] = field(default_factory=dict)
    """Taken events, and the event that each is a duplicate of."""
    rejected: set[UUID] = field(default_factory=set)
    keys: dict[str, UUID] = field(default_factory=dict)
    deliveries: dict[UUID, Delivery] = field(default_factory=dict)
    replays: dict[UUID, Replay] = field(default_factory=dict)

    def take(self, limit: int, capacity: int, owner: str) -> list[Delivery]:
        """The rows with the lowest ids leave the outbox; the deliveries that this makes, without their ids."""
        made = []
        for row_id in sorted(self.outbox)[:limit]:
            row = self.outbox.pop(row_id)
            if row.tenant != "default":
                self.rejected.add(row_id)
                continue
            first = self.keys.setdefault(row.key, row_id) if row.key else row_id
            self.events[row_id] = None if first == row_id else first
            if first == row_id:
                made += [
                    Delivery(row_id, endpoint, row.request_id)
                    for endpoint in self.endpoints.values()
                    if row.event_type in endpoint.types and endpoint.status in ("active", "paused")
                ]
        assert capacity == 0 or capacity >= len(made)
        for delivery in made:
            if capacity and delivery.endpoint.status == "active":
                delivery.generation, delivery.due, delivery.owner = 1, LEASE_S, owner
        return made

    def claim(self, ids: Iterable[UUID], owner: str) -> int:
        """Claimed by a poller; how many of them had an expired lease."""
        expired = 0
        for d in (self.deliveries[i] for i in ids):
            assert d.is_due
            if d.state == "delivering":
                expired += 1
                d.streak += 1
                quarantined = d.streak >= QUARANTINE_AFTER
                d.made[d.generation] = (d.attempts, "quarantined" if quarantined else "unknown")
                exhausted = d.attempts >= d.endpoint.max_attempts
                d.state = "failed" if quarantined or exhausted else "retry_scheduled"
            d.generation += 1
            d.due, d.owner = LEASE_S, owner
        return expired

    def release(self, tickets: Iterable[Ticket], owner: str, delay_s: float) -> int:
        released = 0
        for d in self._at(tickets):
            if d.owner == owner and d.state != "delivering":
                d.due, d.owner = delay_s, None
                released += 1
        return released

    def lose_memory(self) -> int:
        lost = 0
        for d in self.deliveries.values():
            if d.due is not None and 0 < d.due < NEVER and d.owner is not None and d.state != "delivering":
                d.due, d.owner = 0.0, None
                lost += 1
        return lost

    def start(self, tickets: Iterable[Ticket], worker: str) -> set[Ticket]:
        """A worker takes a chunk; which of its attempts have started. What waits for its endpoint is parked."""
        started = set()
        for ticket in tickets:
            for d in self._at([ticket]):
                # No owner: the attempt of this generation has been recorded, or the claim was given back.
                if d.state not in STARTABLE or d.owner is None:
                    continue
                if d.endpoint.status == "active":
                    d.state, d.due, d.owner = "delivering", LEASE_S, worker
                    d.attempts += 1
                    started.add(ticket)
                else:
                    d.due, d.owner = NEVER, None
        return started

    def record(self, ticket: Ticket, answer: str) -> bool:
        """A result reaches the database; whether it is written."""
        for d in self._at([ticket]):
            if d.state != "delivering":
                continue
            outcome = {"200": "delivered", "503": "transient", "400": "definite", "410": "gone", "own": "transient"}
            d.made[d.generation] = (d.attempts, outcome[answer])
            d.owner, d.streak = None, 0
            if answer == "200":
                d.state, d.due = "delivered", None
                d.letters = {g: "resolved" if s == "replayed" else s for g, s in d.letters.items()}
                self._close_item(ticket[0], "resolved")
            elif answer == "own":
                d.attempts -= 1
                d.state, d.due = "retry_scheduled", RETRY_S
            elif answer == "503" and d.attempts < d.endpoint.max_attempts:
                d.state, d.due = "retry_scheduled", RETRY_S
            else:
                d.state, d.due = "failed", 0.0
            if answer == "410" and d.endpoint.status == "active":
                d.endpoint.status = "disabled"
            return True
        return False

    def file(self, tickets: Iterable[Ticket]) -> int:
        filed = 0
        for ticket in tickets:
            for d in self._at([ticket]):
                if d.state == "failed":
                    d.state, d.due, d.owner = "dead_lettered", None, None
                    d.letters[d.generation] = "open"
                    if d.replays:
                        self._close_item(ticket[0], "failed")
                    filed += 1
        return filed

    def replayable(self, request_id: str) -> set[UUID]:
        asked = {i for r in self.replays.values() for i, state in r.items.items() if state == "requested"}
        return {
            i for i, d in self.deliveries.items() if d.request_id == request_id and d.state in OVER and i not in asked
        }

    def request(self, replay_id: UUID, replay: Replay) -> None:
        for delivery_id in replay.items:
            self._close_item(delivery_id, "failed")
        self.replays[replay_id] = replay

    def claim_replays(self, ids: Iterable[UUID]) -> None:
        for replay in (self.replays[i] for i in ids):
            replay.generation += 1
            replay.due = LEASE_S

    def carry_out(self, ticket: Ticket) -> int | None:
        replay = self.replays.get(ticket[0])
        if replay is None or replay.state != "requested" or replay.generation != ticket[1]:
            return None
        replay.state, replay.due = "done", None
        again = 0
        for delivery_id, state in replay.items.items():
            if state != "requested":
                continue
            d = self.deliveries[delivery_id]
            if d.state not in OVER:
                replay.items[delivery_id] = "conflict"
                continue
            again += 1
            replay.items[delivery_id] = "replayed"
            d.letters = {g: "replayed" if s == "open" else s for g, s in d.letters.items()}
            d.state, d.due, d.owner, d.attempts, d.streak = "replayed", 0.0, None, 0, 0
            d.generation += 1
            d.replays += 1
        return again

    def resume(self, endpoint: Endpoint) -> int:
        endpoint.status, freed = "active", 0
        for d in self.deliveries.values():
            if d.endpoint is endpoint and d.due == NEVER:
                d.due, freed = 0.0, freed + 1
        return freed

    def is_current(self, ticket: Ticket) -> bool:
        return bool(self._at([ticket]))

    def _at(self, tickets: Iterable[Ticket]) -> list[Delivery]:
        """The deliveries whose generation the tickets name rightly."""
        return [d for i, g in tickets if (d := self.deliveries.get(i)) is not None and d.generation == g]

    def _close_item(self, delivery_id: UUID, state: str) -> None:
        for replay in self.replays.values():
            if replay.items.get(delivery_id) == "replayed":
                replay.items[delivery_id] = state
