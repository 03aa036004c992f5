"""One scenario from beginning to end: fresh database, processes, load and fault, quiet, judgement. Always answers a result."""

from __future__ import annotations

import asyncio
import random
import statistics
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import redis

from workers.chaos import load
from workers.chaos.fleet import Fleet, ProcessFailed
from workers.chaos.ledger import read_ledger
from workers.chaos.oracle import Judgement, Rules, judge
from workers.chaos.receiver_process import ReceiverProcess
from workers.chaos.residue import residue
from workers.chaos.scenario import Expect, Scenario
from workers.chaos.stage import Stage
from workers.chaos.trial import Trial

#: Events of each tenant before a scenario begins.
WARM_UP_EVENTS = 60


@dataclass
class Result:
    """One row of the table."""

    id: str
    fault: str
    faults: int = 0
    events: int = 0
    deliveries: int = 0
    lost: int = 0
    phantom: int = 0
    duplicates: int = 0
    duplicates_flagged: int = 0
    recovery_p50_s: float | None = None
    recovery_max_s: float | None = None
    seconds: float = 0.0
    passed: bool = False
    skipped: str | None = None
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


async def play(stage: Stage, scenario: Scenario, *, seed: int, full: bool) -> Result:
    """Play a scenario, or say why it cannot be played here."""
    result = Result(scenario.id, scenario.fault)
    if reasons := [why for need in scenario.needs if (why := need(stage))]:
        result.skipped = "; ".join(reasons)
        return result
    began = monotonic()
    try:
        await _play(stage, scenario, result, random.Random(f"{seed}/{scenario.id}"), full)
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError):
            raise
        result.problems.append(f"{type(error).__name__}: {error}")
    result.seconds = round(monotonic() - began, 1)
    result.passed = not result.problems
    return result


async def _play(stage: Stage, scenario: Scenario, result: Result, source: random.Random, full: bool) -> None:
    name = scenario.id.lower()
    folder = stage.folder / name
    folder.mkdir()
    async with AsyncExitStack() as end:
        if scenario.elsewhere is not None:
            stage = end.enter_context(scenario.elsewhere(stage))
        end.callback(_clean_up, stage, name)
        database_url = await asyncio.to_thread(stage.make_database, name)
        fleet = Fleet(stage.environment(database_url, stage.redis_url) | dict(scenario.settings), folder)
        receiver = ReceiverProcess(folder)
        end.callback(receiver.stop)
        end.callback(fleet.close)
        trial = Trial(
            stage, scenario, database_url=database_url, fleet=fleet, receiver=receiver, source=source, full=full
        )
        end.callback(_kill_producers, trial)
        await _set_up(trial)
        sampling = asyncio.create_task(fleet.sample_for_ever())
        end.callback(sampling.cancel)
        try:
            await scenario.play(trial)
        finally:
            for producer in trial.producers:
                await producer.stop()
        await _end(trial, result, folder)


async def _set_up(trial: Trial) -> None:
    scenario, fleet = trial.scenario, trial.fleet
    children = [fleet.start("poller"), *(fleet.start("worker") for _ in range(scenario.workers))]
    wanted = [] if scenario.quiet else load.destinations(scenario.per_tenant)
    trial.ids = await load.register(trial.engine, trial.stage.keys, wanted, trial.receiver.port)
    trial.destinations = list(wanted)
    await fleet.ready(*children)
    if scenario.workers and wanted:
        await _warm_up(trial)


async def _warm_up(trial: Trial) -> None:
    """Fill the processes' pools, so that what they hold afterwards can be compared with what they held before."""
    for tenant in load.TENANTS:
        await trial.commit(tenant, "two.0", WARM_UP_EVENTS)
    await trial.settled(30)


async def _end(trial: Trial, result: Result, folder: Path) -> None:
    if not await trial.settled(trial.scenario.settle_s):
        trial.problems.append(f"not settled {trial.scenario.settle_s:g} s after the fault")
    await trial.fleet.sample()
    left = await residue(trial.database_url, trial.fleet)
    await _stop(trial)
    ledger = await asyncio.to_thread(
        read_ledger, trial.database_url, trial.endpoints(), trial.receiver.requests(), trial.marks
    )
    ledger.residue = left
    rules = Rules(
        duplicates_max=trial.allowed_duplicates,
        signature_age_s=trial.scenario.signature_age_s,
        recovery_s=trial.scenario.recovery_s,
        audit=trial.audit | {"endpoint.created": len(trial.destinations)},
        may_miss=frozenset(trial.may_miss),
    )
    _fill(result, trial, await asyncio.to_thread(judge, ledger, rules))


async def _stop(trial: Trial) -> None:
    """Processes that survived a scenario must still be able to end in order."""
    endings = await asyncio.gather(
        *(trial.fleet.terminate(child) for child in trial.fleet.living()), return_exceptions=True
    )
    trial.problems += [str(ending) for ending in endings if isinstance(ending, ProcessFailed)]


def _fill(result: Result, trial: Trial, found: Judgement) -> None:
    result.faults = trial.faults
    result.events, result.deliveries = found.events, found.deliveries
    result.lost, result.phantom = found.lost, found.phantom
    result.duplicates, result.duplicates_flagged = found.duplicates, found.duplicates_flagged
    if found.recoveries_s:
        result.recovery_p50_s = round(statistics.median(found.recoveries_s), 2)
        result.recovery_max_s = round(found.recoveries_s[-1], 2)
    unmoved = [line for expect in trial.scenario.shows if (line := _unmoved(expect, trial.fleet))]
    idle = [] if trial.faults else ["no fault was injected"]
    result.problems = found.violations + [f"extra: {line}" for line in trial.problems] + unmoved + idle
    rolled_back = sum(producer.figures.get("rolled_back", 0) for producer in trial.producers)
    result.figures = {"requests": found.requests, "rolled_back": rolled_back, **trial.figures}


def _kill_producers(trial: Trial) -> None:
    for producer in trial.producers:
        producer.kill()


def _unmoved(expect: Expect, fleet: Fleet) -> str | None:
    if expect.how == "dips":
        lowest = fleet.lowest(expect.metric)
        return None if lowest == 0 else f"I11 metric: {expect.metric} never fell to 0 (lowest {lowest})"
    return None if fleet.total(expect.metric) > 0 else f"I11 metric: {expect.metric} did not move"


def _clean_up(stage: Stage, name: str) -> None:
    stage.drop_database(name)
    with suppress(redis.RedisError), redis.Redis.from_url(stage.redis_url, socket_timeout=5) as client:
        client.flushdb()
