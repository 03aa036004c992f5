"""How connections to receivers are made and reused: judged addresses, one answer per request.

Builds the aiohttp connector for `app.transport`. Every address of a DNS answer is judged, and so is the address that is
dialled: IP literals never reach a resolver, and a cached answer is not the place to trust.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from aiohttp import TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from app.addresses import AddressGuard

_RESOLVER_THREADS = 32
"""Names looked up at once. Threads of our own: slow names must not use up the loop's few shared ones."""
_DNS_CACHE_S = 10
_IDLE_S = 4.0
"""Below the 5 s after which common servers close an idle connection, which would fail the request on its way."""
_INTERIM_MAX = 16
"""Interim (1xx) responses, and runs of empty lines, accepted for one request."""
_RESPONSE_MAX = 8 << 20
"""Bytes taken from the network for one request: the most that is ever read, 1 MiB, takes 6 in chunks of one byte. Chunk
extensions and trailers cost bytes and are never read."""

_AddrInfo = tuple[int, int, int, str, Any]

GetAddrInfo = Callable[..., list[Any]]
"""Looks a name up: called, answers and raises as `socket.getaddrinfo` does, from a thread of its own."""

Judge = Callable[[str, int], None]
"""Takes an IP address and a port; raises `BlockedAddressError` when it may not be dialled."""

_DEFAULT_PORTS = {"redis": 6379, "rediss": 6379}
_POSTGRES_PORT = 5432


class JudgingResolver(AbstractResolver):
    """Resolves a name; one address that may not be called refuses the whole answer."""

    def __init__(self, judge: Judge, getaddrinfo: GetAddrInfo | None = None) -> None:
        self._judge = judge
        self._getaddrinfo = getaddrinfo
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of `host`.

        Raises:
            BlockedAddressError: an address of the answer may not be called.
            OSError: the lookup failed.
        """
        getaddrinfo = self._getaddrinfo or socket.getaddrinfo
        lookup = functools.partial(
            getaddrinfo, host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
        )
        found = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        results: list[ResolveResult] = []
        for address_family, _, proto, _, address in found:
            self._judge(str(address[0]), port)
            results.append(
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=port,
                    family=address_family,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results

    async def close(self) -> None:
        """Forget the threads; one that still waits for a name server ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class OneAnswerHandler(ResponseHandler):
    """Takes exactly one final response per request.

    Without this a second response that was never asked for would wait in a pooled connection and be taken for the
    answer to the next delivery, and a receiver could keep a worker busy with interim responses.
    """

    _awaiting = False
    _interim = 0
    _pieces = 0
    _bytes = 0

    def set_response_params(self, **params: Any) -> None:
        """Called by aiohttp when a request is about to be sent on this connection."""
        self._awaiting, self._interim, self._pieces, self._bytes = True, 0, 0, 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop; hands the head on before what follows.

        Given both at once, the parser reports a malformed body and forgets the status that came with it.
        """
        self._bytes += len(data)
        if self._bytes > _RESPONSE_MAX:
            self._refuse("too long")
            return
        while self._awaiting and (end := data.find(b"\r\n\r\n") + 4) > 3:
            self._pieces += 1
            if self._pieces > _INTERIM_MAX + 1:
                self._refuse("too many interim responses or empty lines")
                return
            super().data_received(data[:end])
            data = data[end:]
        if data and self.transport is not None and not self.transport.is_closing():
            super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Called by aiohttp with each parsed response head, interim ones included."""
        status = data[0].code
        if not self._awaiting:
            self._refuse("a response that no request asked for")
        elif 100 <= status < 200 and status != 101:
            self._interim += 1
            if self._interim > _INTERIM_MAX:
                self._refuse("too many interim responses")
            # The head is dropped: aiohttp would only skip it.
        else:
            self._awaiting = False
            if status == 101 or status > 599:
                self.force_close()  # not valid here, so what follows on this connection cannot be trusted
            super().feed_data(data, size)

    def _refuse(self, why: str) -> None:
        if self._awaiting:
            self._awaiting = False
            self.set_exception(HttpProcessingError(message=why))
        self.force_close()
        if self.transport is not None:
            self.transport.abort()


class JudgingConnector(TCPConnector):
    """A connection pool that dials judged addresses only; the transport limits connections, not the pool.

    Args:
        guard: says what may be dialled.
        tls: for https.
        encrypted: whether all requests over this pool are https; none of them otherwise.
        getaddrinfo: looks names up; the system's when None.
    """

    def __init__(
        self, guard: AddressGuard, tls: ssl.SSLContext, *, encrypted: bool, getaddrinfo: GetAddrInfo | None = None
    ) -> None:
        judge = functools.partial(guard.check, encrypted=encrypted)
        super().__init__(
            limit=0,
            ssl=tls,
            resolver=JudgingResolver(judge, getaddrinfo),
            ttl_dns_cache=_DNS_CACHE_S,
            keepalive_timeout=_IDLE_S,
            socket_factory=functools.partial(_open_socket, judge),
        )
        handler: type[ResponseHandler] = OneAnswerHandler
        self._factory = functools.partial(handler, loop=self._loop)

    def idle_connections(self) -> int:
        """Open connections that wait in the pool."""
        return sum(handler.is_connected() for pooled in self._conns.values() for handler, _ in pooled)

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Close all connections, and the resolver with them."""
        await super().close(abort_ssl=abort_ssl)
        await self._resolver.close()


def _open_socket(judge: Judge, address: _AddrInfo) -> socket.socket:
    """A socket for the address that is about to be dialled.

    Raises:
        BlockedAddressError: it may not be called.
    """
    family, kind, proto, _, target = address
    judge(str(target[0]), int(target[1]))
    return socket.socket(family, kind, proto)


async def addresses_of(urls: Iterable[str], timeout_s: float) -> set[tuple[str, int]]:
    """IP addresses and ports of the servers that these database and Redis URLs name; what cannot be found is left out."""
    servers = {server for url in urls for server in _servers(url)}
    loop = asyncio.get_running_loop()
    found: set[tuple[str, int]] = set()
    try:
        async with asyncio.timeout(timeout_s):
            lookups = [loop.getaddrinfo(host, port, type=socket.SOCK_STREAM) for host, port in servers]
            for answer in await asyncio.gather(*lookups, return_exceptions=True):
                if not isinstance(answer, BaseException):
                    found |= {(str(address[0]).partition("%")[0], int(address[1])) for *_, address in answer}
    except TimeoutError:
        pass
    return found


def _servers(url: str) -> list[tuple[str, int]]:
    scheme, _, rest = url.partition("://")
    port = _DEFAULT_PORTS.get(scheme, _POSTGRES_PORT)
    servers = []
    for place in urlsplit(f"//{rest}").netloc.rpartition("@")[2].split(","):  # libpq takes several
        try:
            parts = urlsplit(f"//{place}")
            if parts.hostname:
                servers.append((parts.hostname, parts.port or port))
        except ValueError:
            continue
    return servers
