"""What a receiver can do with a request: answer well, badly, slowly, or never. Used by the receiver's process only.

A behaviour is `async def (connection, script) -> int | None`: the status that it answered, None when it answered none.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

Script = dict[str, Any]


@dataclass
class Connection:
    """One connection; `number` tells it apart from the others of this process."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: int = 0
    closing: bool = False
    sent: int = field(default=0)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        self.sent += len(data)

    def close(self) -> None:
        """Orderly end (FIN)."""
        self.closing = True
        self.writer.close()

    def reset(self) -> None:
        """Abrupt end (RST): lingering for zero seconds makes the kernel send one."""
        self.closing = True
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the caller goes away."""
        while await self.reader.read(65536):
            pass


Behaviour = Callable[[Connection, Script], Awaitable["int | None"]]


def head(code: int, headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    """A well-formed response."""
    fields = {"content-length": str(len(body)), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {code} Scripted\r\n{lines}\r\n".encode("latin-1") + body


async def status(connection: Connection, script: Script) -> int | None:
    """Answer `code` with `headers`, after `delay_s`."""
    code = int(script.get("code", 200))
    if delay_s := script.get("delay_s"):
        await asyncio.sleep(delay_s)
    await connection.send(head(code, script.get("headers"), script.get("body", "").encode()))
    return code


async def hang(connection: Connection, script: Script) -> int | None:
    """Take the request and never answer."""
    await connection.gone()
    connection.closing = True
    return None


async def reset(connection: Connection, script: Script) -> int | None:
    """RST after the request."""
    connection.reset()
    return None


async def fin(connection: Connection, script: Script) -> int | None:
    """FIN after the request."""
    connection.close()
    return None


async def mid_headers(connection: Connection, script: Script) -> int | None:
    """Break off in the middle of the headers, by RST or by FIN."""
    await connection.send(b"HTTP/1.1 200 OK\r\ncontent-le")
    if script.get("reset"):
        connection.reset()
    else:
        connection.close()
    return None


async def raw(connection: Connection, script: Script) -> int | None:
    """Exactly these bytes, given as latin-1; `code` is what they amount to."""
    await connection.send(script["bytes"].encode("latin-1"))
    if script.get("then_close"):
        connection.close()
    code = script.get("code")
    return None if code is None else int(code)


async def endless(connection: Connection, script: Script) -> int | None:
    """`head`, then `piece` times `repeat` again and again until the caller goes away."""
    connection.closing = True
    await connection.send(script.get("head", "").encode("latin-1"))
    piece = script["piece"].encode("latin-1") * int(script.get("repeat", 1))
    most = script.get("most", 1 << 30)
    while connection.sent < most and not connection.writer.is_closing():
        await connection.send(piece)
        await asyncio.sleep(script.get("pause_s", 0))
    code = script.get("code")
    return None if code is None else int(code)


async def big(connection: Connection, script: Script) -> int | None:
    """A body of `size` bytes that nobody should read to its end."""
    connection.closing = True
    await connection.send(f"HTTP/1.1 200 OK\r\ncontent-length: {script['size']}\r\n\r\n".encode())
    for _ in range(script["size"] // 65536):
        await connection.send(b"b" * 65536)
    return 200


_BOMBS: dict[int, bytes] = {}


async def gzip_bomb(connection: Connection, script: Script) -> int | None:
    """A small compressed body that would become `size` bytes."""
    connection.closing = True
    size = script["size"]
    if size not in _BOMBS:
        _BOMBS[size] = gzip.compress(bytes(min(size, 8 << 20)), 1) * max(1, size // (8 << 20))
    await connection.send(head(200, {"content-encoding": "gzip"}, _BOMBS[size]))
    return 200


BEHAVIOURS: dict[str, Behaviour] = {
    "status": status,
    "hang": hang,
    "reset": reset,
    "fin": fin,
    "mid_headers": mid_headers,
    "raw": raw,
    "endless": endless,
    "big": big,
    "gzip_bomb": gzip_bomb,
}
#: Statuses that are sent before the behaviour ends: the caller may go away as soon as it has them.
SENT_FIRST = ("endless", "big", "gzip_bomb")
