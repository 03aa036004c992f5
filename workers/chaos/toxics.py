"""Toxiproxy's toxics, by their names there, for one direction of one connection.

A toxic takes each piece of data and yields what goes on; it may wait, cut, or end the connection by `Cut`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

#: How long `CutAfter` lets the server work on what it has.
WORKED_ON_S = 0.1


class Cut(Exception):
    """The connection ends here: at once by RST, or in order."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


class Toxic(Protocol):
    """One link's poison. `apply` sees every piece of data of the direction it was added to."""

    mutes: bool
    """True while nothing may pass the other way either."""

    def apply(self, data: bytes) -> AsyncIterator[bytes]:
        """What goes on of a piece of data."""
        ...

    async def at_end(self) -> None:
        """Called when the sender has closed, before that is passed on."""
        ...


class _Plain:
    mutes = False

    async def at_end(self) -> None:
        return


@dataclass
class Latency(_Plain):
    """Every piece comes later."""

    latency_s: float
    jitter_s: float = 0.0

    async def apply(self, data: bytes) -> AsyncIterator[bytes]:
        await asyncio.sleep(max(0.0, self.latency_s + random.uniform(-self.jitter_s, self.jitter_s)))
        yield data


@dataclass
class Bandwidth(_Plain):
    """At most so many bytes a second."""

    bytes_per_s: float

    async def apply(self, data: bytes) -> AsyncIterator[bytes]:
        step = max(1, int(self.bytes_per_s / 20))
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            await asyncio.sleep(len(piece) / self.bytes_per_s)
            yield piece


@dataclass
class SlowClose:
    """The end comes later than the data."""

    delay_s: float
    mutes: bool = False

    async def apply(self, data: bytes) -> AsyncIterator[bytes]:
        yield data

    async def at_end(self) -> None:
        await asyncio.sleep(self.delay_s)


@dataclass
class Timeout(_Plain):
    """Nothing gets through; after `timeout_s` the connection is closed, never when it is 0."""

    timeout_s: float = 0.0

    async def apply(self, data: bytes) -> AsyncIterator[bytes]:
        if not self.timeout_s:
            await asyncio.Event().wait()
        await asyncio.sleep(self.timeout_s)
        raise Cut(reset=False)
        yield data  # makes this a generator


@dataclass
class ResetPeer(_Plain):
    """RST after `timeout_s`."""

    timeout_s: float = 0.0

    async def apply(self, data: bytes) -> AsyncIterator[bytes]:
        await asyncio.sleep(self.timeout_s)
        raise Cut(reset=True)
        yield data  # makes this a generator


@dataclass
class Slicer(_Plain):
    """Small pieces, with pauses between them."""

    average_size: int = 1
    delay_s: float = 0.0

    async def apply(self, data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), self.average_size):
            yield data[start : start + self.average_size]
            await asyncio.sleep(self.delay_s)


@dataclass
class LimitData(_Plain):
    """The connection is closed after so many bytes."""

    limit_bytes: int
    _passed: int = 0

    async def apply(self, data: bytes) -> AsyncIterator[bytes]:
        room = self.limit_bytes - self._passed
        self._passed += len(data)
        if room > 0:
            yield data[:room]
        if self._passed >= self.limit_bytes:
            raise Cut(reset=False)


@dataclass
class CutAfter(_Plain):
    """Not Toxiproxy's: pass on what holds `pattern`, then RST both sides, so that its answer never arrives.

    Args:
        pattern: such as `COMMIT`.
        share: how often, of all times that the pattern is seen.
        source: decides which.
        cuts: gets one entry for each.
    """

    pattern: bytes
    share: float
    source: random.Random
    cuts: list[float] = field(default_factory=list)
    mutes: bool = False

    async def apply(self, data: bytes) -> AsyncIterator[bytes]:
        self.mutes = self.pattern in data and self.source.random() < self.share
        yield data
        if self.mutes:
            self.cuts.append(asyncio.get_running_loop().time())
            # The server must have it, and have worked on it, before the line breaks.
            await asyncio.sleep(WORKED_ON_S)
            raise Cut(reset=True)
