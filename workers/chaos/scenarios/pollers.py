"""F04: pollers killed at each place of a cycle."""

from __future__ import annotations

import asyncio

from workers.chaos.load import TENANTS
from workers.chaos.scenario import Expect, Scenario
from workers.chaos.trial import Trial

PLACES = ("intake.before_commit", "intake.committed", "claim.before_commit", "claim.committed", "publish.done")


async def killed_at_places(trial: Trial) -> None:
    """One poller after another, each with a place to die at; requests must not multiply by it."""
    trial.receiver.script(f"{TENANTS[0]}-0", "status", code=503, times=2)  # so that there is always something due again
    trial.receiver.script(f"{TENANTS[1]}-1", "status", code=503, times=2)
    await trial.fleet.terminate(trial.fleet.living("poller")[0])
    producer = trial.produce(20)
    for place in PLACES * trial.times(2, 5):
        nth = trial.random.randint(1, 4)
        victim = trial.fleet.start("poller", {"HOMING_FAILPOINTS": f"{place}=kill@{nth}"}, dies=True)
        died = await trial.fleet.wait(victim, 20) is not None
        trial.check(died, f"the poller did not die at {place}")
        if not died:
            await trial.fleet.terminate(victim)
        trial.faults += died
    survivor = trial.fleet.start("poller")
    await trial.fleet.ready(survivor)
    await trial.mark_under_way(may_repeat=False)
    await asyncio.sleep(1)
    await producer.stop()


SCENARIOS = (Scenario("F04", "pollers killed at each place", killed_at_places, (Expect("homing_published_total"),)),)
