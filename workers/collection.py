"""How often Python looks for cyclic garbage in a process that runs for long: a fifth of a worker's CPU, by default."""

from __future__ import annotations

import gc

#: New objects, net of freed ones, after which the youngest generation is looked through (Python's own default is 700 to
#: 2,000), and how often each generation is before the next older one is. A request makes hundreds, nearly all freed without
#: any collection.
THRESHOLDS = (20_000, 50, 100)


def collect_less_often() -> None:
    """Leave what is loaded by now out of every later collection, and make those rarer. Once, when a process is up."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
