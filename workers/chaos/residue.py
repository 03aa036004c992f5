"""What must not be left behind once everything is quiet: leases, locks, open transactions, memory, descriptors."""

from __future__ import annotations

import asyncio
from time import monotonic

from workers.chaos.fleet import Fleet
from workers.chaos.ledger import Growth, Residue, read
from workers.chaos.oracle import DESCRIPTORS_GROWTH

# The sleeper's own two advisory locks are how it sleeps; everything else must be free.
_LEFT = """
    SELECT (SELECT count(*) FROM outbox_events)::integer AS outbox,
           (SELECT count(*) FROM deliveries WHERE state NOT IN ('delivered', 'dead_lettered'))::integer
           AS open_deliveries,
           (SELECT count(*) FROM deliveries WHERE lease_owner IS NOT NULL
            AND state NOT IN ('delivered', 'dead_lettered'))::integer AS leases,
           (SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
            WHERE a.datname = current_database() AND a.application_name LIKE 'homing-%%'
              AND a.state LIKE 'idle%%' AND l.locktype <> 'virtualxid'
              AND NOT (l.locktype = 'advisory' AND a.application_name = 'homing-sleeper'))::integer AS locks,
           (SELECT coalesce(max(extract(epoch FROM clock_timestamp() - state_change)), 0)::float8
            FROM pg_stat_activity
            WHERE datname = current_database() AND state LIKE 'idle in transaction%%') AS idle_in_transaction_s
"""
#: Idle connections to receivers are kept for 4 s, and looked through as often: they are gone after 8, and are not a leak.
DESCRIPTORS_LIMIT_S = 12.0


async def residue(database_url: str, fleet: Fleet) -> Residue:
    """Look once things are quiet; descriptors may take some seconds to be closed."""
    deadline = monotonic() + DESCRIPTORS_LIMIT_S
    while True:
        await fleet.sample()
        growth = _growth(fleet)
        if all(g.descriptors <= DESCRIPTORS_GROWTH for g in growth) or monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    (left,) = await asyncio.to_thread(read, database_url, _LEFT)
    return Residue(
        outbox=left.outbox,
        open_deliveries=left.open_deliveries,
        leases=left.leases,
        locks=left.locks,
        idle_in_transaction_s=left.idle_in_transaction_s,
        growth=tuple(growth),
    )


def _growth(fleet: Fleet) -> list[Growth]:
    return [
        Growth(child.name, child.last.rss_mib - child.first.rss_mib, child.last.descriptors - child.first.descriptors)
        for child in fleet.living()
        if child.first is not None and child.last is not None
    ]
