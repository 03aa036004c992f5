"""What one attempt came to. Pure: statuses and exceptions in, one of five outcomes out.

    delivered   2xx
    transient   408, 429, 5xx, and what a network does on a bad day: retried by the endpoint's policy
    gone        410: the endpoint is disabled
    definite    any other answer, an untrusted certificate, an address that may not be called: never retried
    unknown     no result was recorded (the worker died); written by whoever finds the expired attempt, never here

Called by `app.transport`; read by whoever records attempts and decides on retries.
"""

from __future__ import annotations

import errno
import socket
import ssl
from dataclasses import dataclass
from enum import StrEnum

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from app.addresses import BlockedAddressError


class Outcome(StrEnum):
    """What one attempt came to, as recorded with it."""

    DELIVERED = "delivered"
    TRANSIENT = "transient"
    GONE = "gone"
    DEFINITE = "definite"
    UNKNOWN = "unknown"


class FailureClass(StrEnum):
    """Why an attempt was not delivered; groups failures in listings and metrics."""

    HTTP_STATUS = "http_status"
    GONE = "gone"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_RESET = "connect_reset"
    CONNECT_TIMEOUT = "connect_timeout"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    DNS = "dns"
    PROTOCOL = "protocol"
    CLOSED_EARLY = "closed_early"
    TLS = "tls"
    BLOCKED_ADDRESS = "blocked_address"
    INVALID_URL = "invalid_url"
    UNKNOWN = "unknown"
    OWN_FAULT = "own_fault"


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """One attempt's result, fit to be stored as it is: bounded, redacted, without NUL.

    Attributes:
        outcome: never `unknown` from the transport.
        failure_class: None exactly when delivered.
        http_status: None when no response headers arrived.
        retry_after_s: what the receiver asked for, in seconds; only with transient outcomes.
        error: one line, at most 500 characters; None when delivered.
        response_excerpt: start of the response body as text; None when it was empty, unread or compressed.
        duration_s: from dialling to the last byte read, by the monotonic clock.
    """

    outcome: Outcome
    failure_class: FailureClass | None = None
    http_status: int | None = None
    retry_after_s: float | None = None
    error: str | None = None
    response_excerpt: str | None = None
    duration_s: float = 0.0

    @property
    def counts(self) -> bool:
        """False when the fault is ours and nothing was sent: the endpoint's attempts must not be used up."""
        return self.failure_class is not FailureClass.OWN_FAULT


Verdict = tuple[Outcome, FailureClass]

_BY_ERRNO: dict[int, Verdict] = {
    errno.ECONNREFUSED: (Outcome.TRANSIENT, FailureClass.CONNECT_REFUSED),
    errno.ECONNRESET: (Outcome.TRANSIENT, FailureClass.CONNECT_RESET),
    errno.ECONNABORTED: (Outcome.TRANSIENT, FailureClass.CONNECT_RESET),
    errno.EPIPE: (Outcome.TRANSIENT, FailureClass.CONNECT_RESET),
    errno.ETIMEDOUT: (Outcome.TRANSIENT, FailureClass.CONNECT_TIMEOUT),
    errno.EHOSTUNREACH: (Outcome.TRANSIENT, FailureClass.UNREACHABLE),
    errno.ENETUNREACH: (Outcome.TRANSIENT, FailureClass.UNREACHABLE),
    # Also what dialling IPv6 gives on a machine without it, so it must count as an attempt.
    errno.EADDRNOTAVAIL: (Outcome.TRANSIENT, FailureClass.UNREACHABLE),
    errno.EMFILE: (Outcome.TRANSIENT, FailureClass.OWN_FAULT),
    errno.ENFILE: (Outcome.TRANSIENT, FailureClass.OWN_FAULT),
    errno.ENOBUFS: (Outcome.TRANSIENT, FailureClass.OWN_FAULT),
    errno.ENOMEM: (Outcome.TRANSIENT, FailureClass.OWN_FAULT),
}


def classify_status(status: int) -> Outcome:
    """The outcome of a final response status.

    Beyond 599 a status is invalid and treated like a 5xx, RFC 9110 section 15.
    """
    if 200 <= status <= 299:
        return Outcome.DELIVERED
    if status in (408, 429) or status >= 500:
        return Outcome.TRANSIENT
    return Outcome.GONE if status == 410 else Outcome.DEFINITE


def classify_exception(error: BaseException) -> Verdict:
    """The outcome and class of an attempt that ended without response headers.

    Judged by the whole chain of causes, because aiohttp wraps what the system said in errors of its own.
    """
    chain = _chain(error)
    for verdict in (_ours_or_tls(chain), _by_type(chain), _by_errno(chain)):
        if verdict is not None:
            return verdict
    return Outcome.TRANSIENT, FailureClass.UNKNOWN


def _chain(error: BaseException) -> list[BaseException]:
    """The error and its causes, outermost first; at most 10."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain and len(chain) < 10:
        chain.append(current)
        # aiohttp keeps the system's error here even where it did not chain it.
        current = getattr(current, "os_error", None) or current.__cause__
    return chain


def _ours_or_tls(chain: list[BaseException]) -> Verdict | None:
    if any(isinstance(error, BlockedAddressError) for error in chain):
        return Outcome.DEFINITE, FailureClass.BLOCKED_ADDRESS
    if any(isinstance(error, aiohttp.InvalidURL) for error in chain):
        # The transport has parsed the URL before; what is left is the connector refusing an odd spelling of an IPv4
        # address such as 127.1, which would bypass the resolver.
        return Outcome.DEFINITE, FailureClass.BLOCKED_ADDRESS
    if any(isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) for error in chain):
        return Outcome.TRANSIENT, FailureClass.CLOSED_EARLY
    if any(isinstance(error, ssl.SSLError | ssl.CertificateError) for error in chain):
        return Outcome.DEFINITE, FailureClass.TLS
    return None


def _by_type(chain: list[BaseException]) -> Verdict | None:
    outer = chain[0]
    if isinstance(outer, aiohttp.ConnectionTimeoutError):
        return Outcome.TRANSIENT, FailureClass.CONNECT_TIMEOUT
    if any(isinstance(error, socket.gaierror | UnicodeError) for error in chain) or isinstance(
        outer, aiohttp.ClientConnectorDNSError
    ):
        return Outcome.TRANSIENT, FailureClass.DNS
    if isinstance(outer, aiohttp.ServerDisconnectedError):
        return Outcome.TRANSIENT, FailureClass.CLOSED_EARLY
    if isinstance(outer, aiohttp.ClientResponseError | aiohttp.ClientPayloadError | HttpProcessingError):
        return Outcome.TRANSIENT, FailureClass.PROTOCOL
    if isinstance(outer, TimeoutError) and getattr(outer, "errno", None) is None:
        return Outcome.TRANSIENT, FailureClass.TIMEOUT
    return None


def _by_errno(chain: list[BaseException]) -> Verdict | None:
    for error in chain:
        if isinstance(error, OSError) and error.errno in _BY_ERRNO:
            return _BY_ERRNO[error.errno]
        if isinstance(error, ConnectionError):  # raised without a number, as asyncio does in a TLS handshake
            return Outcome.TRANSIENT, FailureClass.CONNECT_RESET
    return None
