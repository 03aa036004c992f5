"""All scenarios, in the order of the fault matrix."""

from __future__ import annotations

from workers.chaos.scenario import Scenario
from workers.chaos.scenarios import (
    api_killed,
    clock,
    dns,
    pollers,
    postgres,
    postgres_odd,
    producers,
    receivers_odd,
    receivers_slow,
    redis,
    tls,
    workers_killed,
)

SMOKE = ("F02", "F05", "F06", "F10", "F16", "F24", "F26")

SCENARIOS: dict[str, Scenario] = {
    scenario.id: scenario
    for scenario in sorted(
        [
            *producers.SCENARIOS,
            *pollers.SCENARIOS,
            *workers_killed.SCENARIOS,
            *redis.SCENARIOS,
            *postgres.SCENARIOS,
            *postgres_odd.SCENARIOS,
            *clock.SCENARIOS,
            *receivers_odd.SCENARIOS,
            *tls.SCENARIOS,
            *dns.SCENARIOS,
            *receivers_slow.SCENARIOS,
            *api_killed.SCENARIOS,
        ],
        key=lambda scenario: scenario.id,
    )
}
