"""The benchmark's receiver: a process of its own that costs as little as Python can, so that the sender is what is measured.

Run as `python -m workers.bench.receiver FILE [DELAY_MS]`. Answers 200 to every POST after the delay, prints its port on the
first line of stdout, and at SIGTERM writes FILE: one line per request, webhook-id and time received (seconds, UTC).
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_LENGTH = b"content-length: "
_ID = b"webhook-id: "


class _Connection(asyncio.Protocol):
    """Reads pipelined requests with a content-length, which is all that Homing sends."""

    def __init__(self, seen: list[tuple[bytes, float]], delay_s: float) -> None:
        self._seen = seen
        self._delay_s = delay_s
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            body_end = end + 4 + int(_value(head, _LENGTH) or 0)
            if len(self._buffer) < body_end:
                return
            self._buffer = self._buffer[body_end:]
            self._seen.append((_value(head, _ID), time.time()))
            if self._delay_s:
                asyncio.get_running_loop().call_later(self._delay_s, self._answer)
            else:
                self._transport.write(ANSWER)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)


def _value(head: bytes, name: bytes) -> bytes:
    start = head.find(name)
    if start < 0:
        return b""
    start += len(name)
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else None].strip()


async def _serve(seen: list[tuple[bytes, float]], delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    server = await loop.create_server(lambda: _Connection(seen, delay_s), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    requests: list[tuple[bytes, float]] = []
    asyncio.run(_serve(requests, float(sys.argv[2]) / 1000 if len(sys.argv) > 2 else 0.0))
    Path(sys.argv[1]).write_text("".join(f"{name.decode()} {at:.6f}\n" for name, at in requests), encoding="ascii")
