"""A TCP proxy on loopback that breaks what passes through it: Toxiproxy's ideas and names, in one small module.

Toxics are made anew for each connection, by the factories that are in force when it is opened. `down` is a state of the whole
proxy: it refuses new connections and resets those that are open.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from types import TracebackType

from workers.chaos.toxics import Cut, Toxic

Factory = Callable[[], Toxic]


class Proxy:
    """Forwards to one host and port; an async context manager. `port` is stable over `down` and `up`."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._to_server: list[Factory] = []
        self._to_client: list[Factory] = []
        self.port = 0
        self.connections = 0

    def poison(self, *toxics: Factory, stream: str = "downstream") -> None:
        """Put toxics on every connection opened from now on, in place of those that were.

        Args:
            stream: `downstream` (what the server answers) or `upstream` (what the client sends), as Toxiproxy has it.
        """
        if stream == "downstream":
            self._to_client = list(toxics)
        else:
            self._to_server = list(toxics)

    def heal(self) -> None:
        """No toxics on new connections; those that are open keep theirs until they are `reset`."""
        self._to_client, self._to_server = [], []

    def reset(self) -> int:
        """RST every open connection; how many there were."""
        count = len(self._links)
        for writer in list(self._writers):
            _reset(writer)
        for link in list(self._links):
            link.cancel()
        return count

    async def down(self) -> None:
        """Refuse new connections and reset the open ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def up(self) -> None:
        """Accept connections, on the same port as before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1024)
            self.port = self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Proxy:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.down()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = asyncio.create_task(self._link(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        to_server, to_client = [make() for make in self._to_server], [make() for make in self._to_client]
        upstream: asyncio.StreamWriter | None = None
        try:
            answers, upstream = await asyncio.open_connection(*self._upstream)
            self._writers.add(upstream)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, upstream, to_server, to_client))
                both.create_task(_pump(answers, writer, to_client, to_server))
        except* Cut as cuts:
            if any(cut.reset for cut in cuts.exceptions if isinstance(cut, Cut)):
                for side in (writer, upstream):
                    if side is not None:
                        _reset(side)
        except* OSError:
            pass  # either side went away, or the server cannot be reached: so does the other
        finally:
            for side in (writer, upstream):
                if side is not None:
                    self._writers.discard(side)
                    side.close()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, toxics: list[Toxic], others: list[Toxic]
) -> None:
    while data := await reader.read(65536):
        if any(toxic.mutes for toxic in others):
            continue
        async for piece in _through(data, toxics):
            writer.write(piece)
            await writer.drain()
    for toxic in toxics:
        await toxic.at_end()
    if writer.can_write_eof() and not writer.is_closing():
        writer.write_eof()


async def _through(data: bytes, toxics: list[Toxic]) -> AsyncIterator[bytes]:
    if not toxics:
        yield data
        return
    async for piece in toxics[0].apply(data):
        async for rest in _through(piece, toxics[1:]):
            yield rest


def _reset(writer: asyncio.StreamWriter) -> None:
    raw: socket.socket | None = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
