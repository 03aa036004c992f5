"""The whole tree of Homing's own errors.

    HomingError
    ├── SettingsInvalid          a setting is wrong or contradicts another; nothing was started
    ├── InvalidInput             something a person or a producer wrote is not acceptable; nothing was changed
    ├── NotFound                 the named thing does not exist (or is another tenant's, which looks the same)
    ├── Conflict                 the thing exists but its state forbids the act; nothing was changed
    │   └── IdempotencyConflict  the same idempotency key was used before for something else
    ├── ServerAway               Postgres or Redis cannot be reached
    └── EmbeddedServerError      a server that Homing starts itself could not be started or stopped

Every message names what was wrong, where, and what to do. A receiver's answer is data (`app.outcome`), not an error of
ours.
"""

from __future__ import annotations


class HomingError(Exception):
    """Root of the tree; `exit_code` is what the command line exits with, see README, "Exit codes"."""

    exit_code = 1


class SettingsInvalid(HomingError):
    """A setting is wrong or contradicts another; raised before anything is started."""

    exit_code = 2


class InvalidInput(HomingError):
    """Something that a person or a producer wrote is not acceptable; nothing was changed."""

    exit_code = 2


class NotFound(HomingError):
    """The named thing does not exist, or belongs to another tenant, which looks the same."""

    exit_code = 3


class Conflict(HomingError):
    """The thing exists but its state forbids the act; nothing was changed."""

    exit_code = 5


class IdempotencyConflict(Conflict):
    """The idempotency key was used before with another body, target or action; nothing was changed."""


class ServerAway(HomingError):
    """Postgres or Redis cannot be reached; the caller may try again."""

    exit_code = 7


class EmbeddedServerError(HomingError):
    """A server that Homing starts itself could not be started or stopped; the message says which and why."""

    exit_code = 7
