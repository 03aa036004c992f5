"""Listeners that nobody may reach: whoever connects is counted."""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType


class Canaries:
    """While entered, listens on `ports`, each on every local address of both families that this machine has."""

    def __init__(self, count: int = 2) -> None:
        self._count = count
        self._servers: list[asyncio.Server] = []
        self._seen = 0
        self._ours = 0
        self.ports: list[int] = []

    async def __aenter__(self) -> Canaries:
        for _ in range(self._count):
            if socket.has_dualstack_ipv6():
                listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
            else:
                listener = socket.create_server(("0.0.0.0", 0))
            self._servers.append(await asyncio.start_server(self._accept, sock=listener))
            self.ports.append(listener.getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._seen += 1
        writer.close()

    async def connections(self) -> int:
        """How many were made so far: those that still wait to be accepted come before the one made here."""
        for port in self.ports:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await reader.read()
            writer.close()
            self._ours += 1
        return self._seen - self._ours
