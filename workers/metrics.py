"""Every metric, by process. Prefix `homing_`, base units, and no label that grows with tenants, endpoints or URLs."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

#: Seconds; attempts end at the deadline, ages go on to hours when a receiver is down.
ATTEMPT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30)
AGE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1800, 7200, 43200)


class WorkerMetrics:
    """What a worker counts."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.attempts = Counter(
            "homing_attempts",
            "Attempts whose result was recorded, by outcome and class.",
            ["outcome", "class"],
            registry=r,
        )
        self.deliveries = Counter(
            "homing_deliveries",
            "Deliveries that an attempt moved on, by the state they moved to.",
            ["state"],
            registry=r,
        )
        self.attempt_seconds = Histogram(
            "homing_attempt_duration_seconds",
            "From dialling to the last byte read.",
            buckets=ATTEMPT_BUCKETS,
            registry=r,
        )
        self.delivered_age_seconds = Histogram(
            "homing_delivered_age_seconds",
            "From the commit of the outbox row to its delivery (worker's clock against the database's).",
            buckets=AGE_BUCKETS,
            registry=r,
        )
        self.in_flight = Gauge("homing_in_flight", "Requests on their way.", registry=r)
        self.retries = Counter("homing_retries", "Retries scheduled.", registry=r)
        self.dead_letters = Counter("homing_dead_letters", "Dead letters filed.", registry=r)
        self.replayed = Counter("homing_replayed_deliveries", "Deliveries sent again by a person.", registry=r)
        self.parked = Counter("homing_parked", "Deliveries put aside because their endpoint is not active.", registry=r)
        self.stale = Counter(
            "homing_stale_rejected",
            "Tickets and results dropped because their generation had passed.",
            ["what"],
            registry=r,
        )
        self.messages_rejected = Counter(
            "homing_messages_rejected", "Redis messages dropped: undecodable, forged, or failed.", ["why"], registry=r
        )
        self.flush_results = Histogram(
            "homing_flush_results",
            "Results recorded by one statement.",
            buckets=(1, 2, 5, 10, 25, 50, 100, 200, 500),
            registry=r,
        )
        self.flush_failures = Counter("homing_flush_failures", "Flushes that had to be tried again.", registry=r)


class PollerMetrics:
    """What a poller counts and measures."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.taken = Counter("homing_outbox_taken", "Outbox rows taken.", registry=r)
        self.rejected = Counter("homing_outbox_rejected", "Outbox rows set aside with a reason.", registry=r)
        self.duplicates = Counter(
            "homing_outbox_duplicates", "Outbox rows whose idempotency key was known.", registry=r
        )
        self.fanned_out = Counter("homing_deliveries_created", "Deliveries made by fan-out.", registry=r)
        self.published = Counter("homing_published", "Deliveries published, by queue.", ["queue"], registry=r)
        self.publish_failures = Counter("homing_publish_failures", "Publications that Redis did not take.", registry=r)
        self.expired_leases = Counter(
            "homing_expired_leases", "Attempts whose lease ended without a result.", registry=r
        )
        self.redis_losses = Counter("homing_redis_memory_lost", "Times that Redis was found empty.", registry=r)
        self.cycle_failures = Counter("homing_poller_failures", "Cycles that ended in an error.", registry=r)
        self.redis_up = Gauge("homing_redis_up", "1 while Redis takes what is published.", registry=r)
        self.outbox_waiting = Gauge(
            "homing_outbox_waiting", "Outbox rows not taken yet, counted up to 10,000.", registry=r
        )
        self.outbox_age = Gauge(
            "homing_outbox_oldest_age_seconds", "Age of the oldest outbox row not taken.", registry=r
        )
        self.rejected_waiting = Gauge(
            "homing_outbox_set_aside", "Outbox rows set aside and not resubmitted, counted up to 10,000.", registry=r
        )
        self.due = Gauge("homing_due", "Deliveries due and not published, counted up to 10,000.", registry=r)
        self.oldest_due_age = Gauge(
            "homing_oldest_due_age_seconds", "How long the oldest due delivery has waited.", registry=r
        )
        self.dead_letters_open = Gauge(
            "homing_dead_letters_open", "Dead letters that nobody has replayed, counted up to 10,000.", registry=r
        )
