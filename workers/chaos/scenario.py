"""What a scenario is: a fault, how it is played, what must have moved, and what it needs of this machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workers.chaos.stage import RECOVERY_S, Stage

if TYPE_CHECKING:
    from workers.chaos.trial import Trial

Play = Callable[["Trial"], Awaitable[None]]
#: Says why a scenario cannot be played here; None when it can.
Need = Callable[[Stage], "str | None"]


@dataclass(frozen=True)
class Expect:
    """A metric that shows the fault: `rises` above zero (a counter), or `dips` to zero (a gauge)."""

    metric: str
    how: str = "rises"


@dataclass(frozen=True)
class Scenario:
    """One row of the fault matrix.

    Attributes:
        id: as in the matrix.
        fault: what is broken, in words.
        play: breaks it; called with everything running, and followed by the judge.
        shows: metrics that must tell of it.
        needs: what must be there.
        settings: of Homing's processes, besides the suite's.
        workers: processes started before `play`.
        per_tenant: endpoints of each of the three tenants.
        recovery_s: bar for each delivery that a mark names; None: no bar.
        signature_age_s: how far a signature's time may be from the receiver's.
        settle_s: how long everything may take to come to its end afterwards.
        quiet: no endpoints of the standard load; the scenario makes its own.
        elsewhere: yields the stage that it is played on, in place of the common one.
    """

    id: str
    fault: str
    play: Play
    shows: tuple[Expect, ...] = ()
    needs: tuple[Need, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    workers: int = 2
    per_tenant: int = 8
    recovery_s: float | None = RECOVERY_S
    signature_age_s: float = 5.0
    settle_s: float = 60.0
    quiet: bool = False
    elsewhere: Callable[[Stage], AbstractContextManager[Stage]] | None = None


def own_postgres(stage: Stage) -> str | None:
    """The scenario kills or stops PostgreSQL."""
    return None if stage.postgres is not None else "PostgreSQL at HOMING_DATABASE_URL is not the suite's to break"


def own_redis(stage: Stage) -> str | None:
    """The scenario kills or stops Redis."""
    return None if stage.valkey is not None else "Redis at HOMING_REDIS_URL is not the suite's to break"
