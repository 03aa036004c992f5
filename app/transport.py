"""One HTTP attempt: the only place that talks to receivers.

`Transport.post` turns whatever the network or a receiver does into an `AttemptResult`; it decides nothing about retries
and writes nothing. One transport per process, used on one event loop.

aiohttp is used directly, because it costs a third of httpx over the same connections. Redirects, cookies, proxies,
`.netrc` and decompression are all off.
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from time import monotonic
from types import TracebackType
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from app.addresses import NOT_CALLABLE, AddressGuard, BlockedAddressError
from app.backoff import parse_retry_after
from app.config import Settings
from app.connector import GetAddrInfo, JudgingConnector, addresses_of
from app.outcome import AttemptResult, FailureClass, Outcome, classify_exception, classify_status
from app.redaction import redact, redact_addresses

TOKEN_MIN = 12
"""Characters from which a part of an endpoint's path is taken for a token."""
ERROR_MAX = 500
"""Characters of an error summary, at most."""
METRICS_PORTS = 100
"""How many loopback ports a process tries for its metrics, from the first on."""
_BIG_BODY_BYTES = 1 << 20
"""aiohttp warns about longer bodies given as bytes."""

# One text for each class: what an exception says may hold addresses, ports or URLs.
_SUMMARY = {
    FailureClass.CONNECT_REFUSED: "connection refused",
    FailureClass.CONNECT_RESET: "connection reset by the receiver",
    FailureClass.CONNECT_TIMEOUT: "no connection within the connect limit",
    FailureClass.UNREACHABLE: "no route to the receiver",
    FailureClass.TIMEOUT: "no response within the deadline",
    FailureClass.DNS: "the host name could not be resolved",
    FailureClass.PROTOCOL: "the answer was not valid HTTP",
    FailureClass.CLOSED_EARLY: "connection closed before a response arrived",
    FailureClass.TLS: "TLS failed",
    FailureClass.BLOCKED_ADDRESS: NOT_CALLABLE,
    FailureClass.INVALID_URL: "the endpoint's URL is not valid",
    FailureClass.OWN_FAULT: "not sent: out of sockets or connections here",
    FailureClass.UNKNOWN: "unexpected failure",
}


class _BareRequest(aiohttp.ClientRequest):
    """A request with no headers of aiohttp's own; asking it to skip them would copy all headers for every request."""

    def update_auto_headers(self, skip_auto_headers: Iterable[str] | None) -> None:
        """Add none."""


class Transport:
    """Sends attempts over pooled connections; an async context manager.

    Each endpoint, by its URL, has at most `connections_per_endpoint` requests under way. Waiting for a place is not
    part of the attempt: the deadline starts afterwards, and when no place comes free in the time that the lease
    leaves, the result is our own fault and does not count.

    Args:
        settings: limits, and what may be called.
        own_servers: URLs of the database and of Redis, which may never be called, where the settings do not name them.
        getaddrinfo: looks host names up instead of the system's resolver; for tests.
    """

    def __init__(
        self, settings: Settings, *, own_servers: Iterable[str] = (), getaddrinfo: GetAddrInfo | None = None
    ) -> None:
        self._deadline_s = settings.deadline_s
        # The second that is left belongs to recording the result before the lease ends.
        self._slot_wait_s = max(0.0, settings.lease_s - settings.deadline_s - 1)
        self._slots_each = settings.connections_per_endpoint
        self._read_bytes = settings.response_read_bytes
        self._keep_bytes = settings.response_keep_bytes
        self._connect_timeout_s = settings.connect_timeout_s
        self._settings = settings
        self._own_servers = [*own_servers]
        self._own_servers += [
            u.get_secret_value() for u in (settings.database_url, settings.redis_url) if u is not None
        ]
        self._getaddrinfo = getaddrinfo
        # By URL and not by host: many customers share one. Weak: a URL is forgotten when nobody holds or awaits a place.
        self._slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        # One of each for https and for http: what an address may be called with depends on it.
        self._connectors: dict[str, JudgingConnector] = {}
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Transport:
        # The system's trusted certificates (or SSL_CERT_FILE), TLS 1.2 at least, host names checked.
        tls = ssl.create_default_context()
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        guard = AddressGuard(
            self._settings.allowed_networks,
            ports=self._settings.allowed_ports,
            plain_http=self._settings.allow_http,
            own=await self._own_places(),
        )
        for scheme in ("https", "http"):
            connector = JudgingConnector(guard, tls, encrypted=scheme == "https", getaddrinfo=self._getaddrinfo)
            self._connectors[scheme] = connector
            self._sessions[scheme] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=self._connect_timeout_s, sock_connect=None, sock_read=None, ceil_threshold=3600
                ),
                request_class=_BareRequest,
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.close()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> AttemptResult:
        """Send one attempt and say what came of it; never raises for what the network or the receiver does.

        Args:
            url: as `validate_endpoint_url` returned it.
            headers: as `build_headers` returned them.
            body: sent as it is.

        Raises:
            asyncio.CancelledError: the caller gave up; the connection is closed.
        """
        try:
            parsed = _parse(url)
        except ValueError:
            return _failed(Outcome.DEFINITE, FailureClass.INVALID_URL, 0.0)
        slot = self._slots.get(url)
        if slot is None:
            slot = self._slots[url] = asyncio.Semaphore(self._slots_each)
        try:
            if slot.locked():
                async with asyncio.timeout(self._slot_wait_s):
                    await slot.acquire()
            else:
                await slot.acquire()
        except TimeoutError:
            return _failed(Outcome.TRANSIENT, FailureClass.OWN_FAULT, 0.0)
        try:
            return await self._attempt(parsed, headers, body)
        finally:
            slot.release()

    def idle_connections(self) -> int:
        """Pooled connections that wait for their next request."""
        return sum(connector.idle_connections() for connector in self._connectors.values())

    async def _own_places(self) -> set[tuple[str, int]]:
        first = self._settings.metrics_port
        metrics = range(first, min(first + METRICS_PORTS, 65536)) if first else range(0)
        return {("127.0.0.1", port) for port in metrics} | await addresses_of(
            self._own_servers, self._connect_timeout_s
        )

    async def _attempt(self, url: URL, headers: Mapping[str, str], body: bytes) -> AttemptResult:
        if not self._sessions:
            raise RuntimeError("the transport is not open: use it as `async with Transport(settings)`")
        started = monotonic()
        response: aiohttp.ClientResponse | None = None
        received = bytearray()
        try:
            async with asyncio.timeout(self._deadline_s):
                response = await self._sessions[url.scheme].request(
                    "POST",
                    url,
                    headers=headers,
                    data=body if len(body) <= _BIG_BODY_BYTES else io.BytesIO(body),
                    allow_redirects=False,
                )
                await self._read(response, received)
        except Exception as error:  # everything a receiver can cause, and never CancelledError
            if response is None:
                return _failed(*classify_exception(error), monotonic() - started, error)
            # The status has arrived and stands, whatever became of the body.
        finally:
            if response is not None:
                response.close()  # does nothing when the body was read to its end: the connection is pooled by then
        return self._answered(response, bytes(received), monotonic() - started)

    async def _read(self, response: aiohttp.ClientResponse, received: bytearray) -> None:
        """Read at most the limit; what follows is never drained, the connection is closed instead."""
        content = response.content
        while not content.at_eof() and len(received) < self._read_bytes:
            received += await content.read(self._read_bytes - len(received))

    def _answered(self, response: aiohttp.ClientResponse, body: bytes, duration_s: float) -> AttemptResult:
        status = response.status
        excerpt: str | None = None
        if body and response.headers.get("content-encoding", "identity").strip().lower() == "identity":
            excerpt = redact(_without_own_path(body, response.url), self._keep_bytes) or None
        if status == 101 or status > 599:
            # We never ask to switch protocols (RFC 9110 section 15.2.2), and beyond 599 nothing is defined (15).
            outcome, failure = Outcome.TRANSIENT, FailureClass.PROTOCOL
        elif (outcome := classify_status(status)) is Outcome.DELIVERED:
            return AttemptResult(outcome, None, status, None, None, excerpt, duration_s)
        else:
            failure = FailureClass.GONE if outcome is Outcome.GONE else FailureClass.HTTP_STATUS
        retry_after_s = None
        if outcome is Outcome.TRANSIENT:
            retry_after_s = parse_retry_after(response.headers.get("retry-after"), datetime.now(UTC))
        error = f"HTTP {status}" + (": redirects are not followed" if 300 <= status <= 399 else "")
        return AttemptResult(outcome, failure, status, retry_after_s, error, excerpt, duration_s)


def _without_own_path(body: bytes, url: URL) -> bytes:
    """The body without the long parts of the endpoint's own path: for many receivers the path is the credential."""
    for part in url.raw_path.split("/"):
        if len(part) >= TOKEN_MIN:
            body = body.replace(part.encode(), b"[redacted]")
    return body


@lru_cache(maxsize=4096)
def _parse(url: str) -> URL:
    # As it is: encoding it again could change what the endpoint's owner wrote.
    parsed = URL(url, encoded=True)
    if parsed.scheme not in ("http", "https") or not parsed.raw_host or parsed.user or parsed.password:
        raise ValueError
    return parsed


def _failed(
    outcome: Outcome, failure: FailureClass, duration_s: float, error: BaseException | None = None
) -> AttemptResult:
    summary = _SUMMARY[failure]
    if failure is FailureClass.BLOCKED_ADDRESS:
        summary = _why_blocked(error)
    elif failure is FailureClass.TLS:
        summary += _detail(_tls_reason(error))
    elif failure is FailureClass.PROTOCOL and isinstance(error, aiohttp.ClientResponseError):
        summary += _detail(error.message)
    elif failure is FailureClass.UNKNOWN:
        summary += _detail(type(error).__name__)
    return AttemptResult(outcome, failure, error=summary[:ERROR_MAX], duration_s=duration_s)


def _detail(text: str) -> str:
    clean = redact(redact_addresses(text), ERROR_MAX - 100)
    return f": {clean}" if clean else ""


def _why_blocked(error: BaseException | None) -> str:
    """Which rule refused the address."""
    while error is not None:
        if isinstance(error, BlockedAddressError):
            return error.strerror or NOT_CALLABLE
        error = error.__cause__
    return NOT_CALLABLE


def _tls_reason(error: BaseException | None) -> str:
    """What OpenSSL said: `self-signed certificate`, `WRONG_VERSION_NUMBER`; empty if nothing."""
    while error is not None:
        # aiohttp's own errors are SSL errors too, but have neither.
        if reason := getattr(error, "verify_message", None) or getattr(error, "reason", None):
            return str(reason)
        error = error.__cause__
    return ""
