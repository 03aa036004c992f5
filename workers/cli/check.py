"""What one check of `homing doctor` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """One check: `fail` means that Homing does not keep its promises, `warn` that it may soon not."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    do: str = ""
    """What to do about it; empty when it is ok."""
