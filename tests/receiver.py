"""A real local HTTP receiver that can misbehave: a raw asyncio server that plays one scripted behaviour.

    async with Receiver(status(503, {"retry-after": "7"})) as receiver:
        ...                   # POST to receiver.url
        receiver.requests     # what arrived, exact bytes and headers, in order

A behaviour is `async def (request, connection) -> None`; after it returns, the connection is kept open for the next
request unless the behaviour closed it. `sequence(a, b)` plays `a` for the first request, then `b` for all others.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType


@dataclass
class Request:
    """One request as it arrived; header names in lower case, `raw_headers` exactly as sent and in order."""

    method: str
    target: str
    headers: dict[str, str]
    raw_headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        """Orderly end (FIN)."""
        self.closing.set()
        self.writer.close()

    def reset(self) -> None:
        """Abrupt end (RST): lingering for zero seconds makes the kernel send one."""
        self.closing.set()
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Behaviour = Callable[[Request, Connection], Awaitable[None]]


class Receiver:
    """Listens on 127.0.0.1 while entered.

    Args:
        behaviour: what to do with each request.
        at_accept: called before anything is read; may close the connection.
        tls: serve HTTPS with this context.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        at_accept: Callable[[Connection], Awaitable[None]] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.behaviour = behaviour or ok
        self._at_accept = at_accept
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.requests: list[Request] = []
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/hook"

    async def __aenter__(self) -> Receiver:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(Connection(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: Connection) -> None:
        try:
            if self._at_accept is not None:
                await self._at_accept(connection)
            while not connection.closing.is_set():
                request = await _read_request(connection.reader)
                self.requests.append(request)
                await self.behaviour(request, connection)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the sender went away, which is what many tests are about
        finally:
            connection.writer.transport.abort()


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    method, target, _ = first.decode("ascii").split(" ")
    raw = [(name, value.strip(b" ")) for name, _, value in (line.partition(b":") for line in lines)]
    headers = {name.decode("ascii").lower(): value.decode("latin-1") for name, value in raw}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, target, headers, raw, body)


def response(code: int, headers: Mapping[str, str] | None = None, body: bytes = b"", reason: str = "Scripted") -> bytes:
    """The bytes of a well-formed response."""
    fields = {"content-length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {code} {reason}\r\n{head}\r\n".encode("latin-1") + body


def status(code: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Behaviour:
    return raw(response(code, headers, body))


def raw(data: bytes, *, then_close: bool = False) -> Behaviour:
    """Exactly these bytes: SMTP banners, bad chunks, HTTP/0.9 and the like."""

    async def play(request: Request, connection: Connection) -> None:
        await connection.send(data)
        if then_close:
            connection.close()

    return play


def sequence(*behaviours: Behaviour) -> Behaviour:
    """Each behaviour once, in order, over all connections; the last one for ever."""
    left = list(behaviours)

    async def play(request: Request, connection: Connection) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request, connection)

    return play


async def ok(request: Request, connection: Connection) -> None:
    await connection.send(response(200))


async def silent(request: Request, connection: Connection) -> None:
    """Half-open: the request is taken and never answered."""
    await connection.closing.wait()


async def reset(request: Request, connection: Connection) -> None:
    connection.reset()


async def close_early(request: Request, connection: Connection) -> None:
    connection.close()


async def reset_mid_headers(request: Request, connection: Connection) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\ncontent-le")
    connection.reset()


async def close_mid_headers(request: Request, connection: Connection) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\ncontent-le")
    connection.close()


def endless(head: bytes, piece: bytes, pause_s: float = 0.0) -> Behaviour:
    """`head`, then `piece` again and again until the sender goes away."""

    async def play(request: Request, connection: Connection) -> None:
        await connection.send(head)
        while not connection.writer.is_closing():
            await connection.send(piece)
            await asyncio.sleep(pause_s)

    return play


def drip_headers() -> Behaviour:
    return endless(b"HTTP/1.1 200 OK\r\nx-drip: ", b"a", 0.02)


def drip_body(code: int = 200) -> Behaviour:
    return endless(f"HTTP/1.1 {code} OK\r\ncontent-length: 1000000\r\n\r\n".encode(), b"a", 0.02)


def drip_interim() -> Behaviour:
    return endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.1)


def flood_interim() -> Behaviour:
    return endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 1000)


def huge_headers() -> Behaviour:
    return endless(b"HTTP/1.1 200 OK\r\n", b"x-huge: " + b"a" * 4000 + b"\r\n")


def long_header_line() -> Behaviour:
    return endless(b"HTTP/1.1 200 OK\r\nx-huge: ", b"a" * 65536)


def big_body(size: int, code: int = 200) -> Behaviour:
    """A body of `size` bytes of which nobody should read much."""

    async def play(request: Request, connection: Connection) -> None:
        await connection.send(f"HTTP/1.1 {code} OK\r\ncontent-length: {size}\r\n\r\n".encode())
        piece = b"b" * 65536
        for _ in range(size // len(piece)):
            await connection.send(piece)

    return play


def infinite_chunks() -> Behaviour:
    return endless(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"10000\r\n" + b"c" * 65536 + b"\r\n")


def gzip_bomb(size: int = 64 << 20) -> Behaviour:
    """A small compressed body that would become `size` bytes."""
    return status(200, {"content-encoding": "gzip"}, gzip.compress(bytes(size)))


def redirect(location: str, code: int = 302) -> Behaviour:
    return status(code, {"location": location})
