"""Names of everything that Homing keeps in Redis, and its scripts. Three queues, five keys each, and one sentinel.

    homing:<queue>                   list of message ids, oldest first
    homing:<queue>.msgs              hash of message id -> message (a few kB at most)
    homing:<queue>.wake              list of tokens that wake sleeping consumers, at most 64
    homing:<queue>.consumers         sorted set of consumer id -> last sign of life, in ms of Redis' clock
    homing:<queue>.taken.<consumer>  set of ids that a consumer has fetched and not acknowledged
    homing:alive                     the sentinel: gone when Redis has lost its memory

The first two are Dramatiq's own layout.
"""

from __future__ import annotations

from pathlib import Path

NAMESPACE = "homing"
SENTINEL = f"{NAMESPACE}:alive"


def queue_key(queue: str) -> str:
    """List of message ids."""
    return f"{NAMESPACE}:{queue}"


def payloads_key(queue: str) -> str:
    """Hash of message id -> message."""
    return f"{NAMESPACE}:{queue}.msgs"


def wake_key(queue: str) -> str:
    """List of wake tokens."""
    return f"{NAMESPACE}:{queue}.wake"


def consumers_key(queue: str) -> str:
    """Sorted set of consumers by last sign of life."""
    return f"{NAMESPACE}:{queue}.consumers"


def taken_key(queue: str, consumer: str) -> str:
    """Set of ids that a consumer has fetched and not acknowledged."""
    return f"{NAMESPACE}:{queue}.taken.{consumer}"


def script(name: str) -> str:
    """The text of one of the Lua scripts beside this module; each one's header lists its keys and arguments."""
    return (Path(__file__).parent / "lua" / f"{name}.lua").read_text(encoding="utf-8")
