"""The benchmark's receiver: a process of its own that costs as little as Python can, so that the sender is what is measured.

Run as `python -m workers.bench.receiver LOG COUNTER [DELAY_MS]`. It prints its port on the first line of stdout, keeps the
number of requests in COUNTER (8 bytes, this machine's byte order, for others to map), and at SIGUSR1 writes LOG: one line per
request so far, webhook-id and time received (seconds, UTC). It answers 200 after the delay, but 503 to paths that begin with
`/failing`, and nothing at all to those that begin with `/hanging`; neither of these is logged or counted.
"""

from __future__ import annotations

import asyncio
import mmap
import signal
import sys
import time
from pathlib import Path

import uvloop

COUNTER_BYTES = 8
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_ID = b"\r\nwebhook-id:"


class _Log:
    """What has been received, in memory until the end."""

    def __init__(self, counter: mmap.mmap) -> None:
        self.lines: list[tuple[bytes, float]] = []
        self._counter = counter

    def write(self, file: Path) -> None:
        """Whole, or not at all."""
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text("".join(f"{name.decode()} {at:.6f}\n" for name, at in self.lines), encoding="ascii")
        unfinished.rename(file)

    def add(self, name: bytes) -> None:
        self.lines.append((name, time.time()))
        self._counter[:COUNTER_BYTES] = len(self.lines).to_bytes(COUNTER_BYTES, sys.byteorder)


class _Connection(asyncio.Protocol):
    """Reads requests with a content-length, one after the other."""

    def __init__(self, log: _Log, delay_s: float) -> None:
        self._log = log
        self._delay_s = delay_s
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[: end + 2]
            lower = head.lower()
            body_end = end + 4 + int(_value(head, lower, _LENGTH) or 0)
            if len(self._buffer) < body_end:
                return
            self._buffer = self._buffer[body_end:]
            self._answer_to(head, lower)

    def _answer_to(self, head: bytes, lower: bytes) -> None:
        if head.startswith(b"POST /hanging"):
            return
        if head.startswith(b"POST /failing"):
            self._transport.write(REFUSAL)
            return
        self._log.add(_value(head, lower, _ID))
        if self._delay_s:
            asyncio.get_running_loop().call_later(self._delay_s, self._answer)
        else:
            self._transport.write(ANSWER)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)


def _value(head: bytes, lower: bytes, name: bytes) -> bytes:
    start = lower.find(name)
    if start < 0:
        return b""
    start += len(name)
    return head[start : head.find(b"\r\n", start)].strip()


async def _serve(log: _Log, file: Path, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, log.write, file)
    server = await loop.create_server(lambda: _Connection(log, delay_s), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _main(log_file: Path, counter_file: Path, delay_s: float) -> None:
    with counter_file.open("r+b") as file, mmap.mmap(file.fileno(), COUNTER_BYTES) as counter:
        uvloop.run(_serve(_Log(counter), log_file, delay_s))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) / 1000 if len(sys.argv) > 3 else 0.0)
