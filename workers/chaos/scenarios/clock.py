"""F23: clocks of workers that are wrong, and that jump."""

from __future__ import annotations

import asyncio
from pathlib import Path

from workers.chaos.fleet import Child
from workers.chaos.load import TENANTS
from workers.chaos.scenario import Expect, Scenario
from workers.chaos.trial import Trial

SHIFTS_S = (600.0, -600.0)
JUMPS_S = (3600.0, -3600.0, 0.0)


async def wrong(trial: Trial) -> None:
    """One worker and the poller ten minutes ahead, one worker ten minutes behind; then all jump by an hour."""
    trial.receiver.script(f"{TENANTS[0]}-0", "status", code=503, times=2)
    trial.receiver.script(f"{TENANTS[1]}-1", "status", code=429, times=1, headers={"retry-after": "1"})
    for child in trial.fleet.living():
        await trial.fleet.terminate(child)
    files = [trial.receiver.file.with_name(f"clock-{n}") for n in range(2)]
    for file, shift in zip(files, SHIFTS_S, strict=True):
        file.write_text(str(shift), encoding="ascii")
    children = [
        _start(trial, kind, file) for kind, file in (("poller", files[0]), ("worker", files[0]), ("worker", files[1]))
    ]
    await trial.fleet.ready(*children)
    trial.faults = len(children)
    producer = trial.produce(20)
    await asyncio.sleep(trial.times(6, 12))
    for jump in JUMPS_S:
        for file in files:
            file.write_text(str(jump), encoding="ascii")
            trial.faults += 1
        await asyncio.sleep(trial.times(2, 5))
    await producer.stop()


def _start(trial: Trial, kind: str, clock: Path) -> Child:
    return trial.fleet.start(kind, {"CHAOS_CLOCK": str(clock)}, program=("-m", "workers.chaos.skewed"))


SCENARIOS = (Scenario("F23", "clocks wrong and jumping", wrong, (Expect("homing_retries_total"),)),)
