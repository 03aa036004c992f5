"""Sending one request id's deliveries, or one delivery, again: what `homing replay` and `homing deliveries retry` share."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING
from uuid import UUID

from workers.cli.access import in_transaction, operator
from workers.cli.output import give, say

if TYPE_CHECKING:
    from app.replays import ReplayAnswer


def send_again(
    *,
    request_id: str | None = None,
    delivery_id: UUID | None = None,
    reason: str,
    idempotency_key: str | None,
    dry_run: bool,
    tenant: str,
    as_json: bool,
) -> ReplayAnswer:
    """Ask for it, print the answer, and say when it was asked for before; the rest is the caller's to say."""
    from app.replays import request_replay

    answer = in_transaction(
        request_replay,
        tenant_id=tenant,
        request_id=request_id,
        delivery_id=delivery_id,
        reason=reason,
        actor=operator(),
        idempotency_key=idempotency_key,
        dry_run=dry_run,
    )
    give(asdict(answer) | {"dry_run": dry_run}, as_json=as_json)
    if answer.repeated and not dry_run:
        say("this key was used for the same replay before: nothing was done again")
    return answer
