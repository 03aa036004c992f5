"""Event types and the patterns that endpoints subscribe to them with. Pure."""

from __future__ import annotations

import re

#: An event type: visible ASCII without `*`, at most 256 characters.
EVENT_TYPE = re.compile(r"[!-)+-~]{1,256}")
#: A subscription: an exact type, `prefix.*` (any depth below the prefix), or `*`.
PATTERN = re.compile(r"\*|[!-)+-~]{1,254}(\.\*)?")


def covering_patterns(event_type: str) -> list[str]:
    """Every pattern that covers a type: an endpoint gets the event when it subscribes to at least one of them.

    `invoice.paid.late` is covered by `*`, `invoice.*`, `invoice.paid.*` and `invoice.paid.late`.
    """
    parts = event_type.split(".")
    return ["*", *(".".join(parts[:n]) + ".*" for n in range(1, len(parts))), event_type]
