"""Request headers: which an event may bring along, and the final set of one attempt. Pure.

An event's own headers go to every endpoint that the event fans out to and are stored in readable form. `authorization`
is allowed among them for receivers that need it; whoever writes it decides that all of them may see it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from app import __version__
from app.errors import InvalidInput

MAX_HEADERS = 20
MAX_BYTES = 4096
"""Names and values together."""

USER_AGENT = f"Homing/{__version__}"

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # token, RFC 9110 section 5.6.2
_VALUE = re.compile(r"[\t -~]*")  # field-value without obs-text, RFC 9110 section 5.5
# W3C Trace Context 3.2: no id is all zeros, version ff is invalid, only versions after 00 may say more. At most 255
# characters, so that one of which the intake kept the first 256 is not taken for a whole one.
_TRACE_IDS = r"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT = re.compile(rf"00-{_TRACE_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_TRACE_IDS}(?:-[!-~]{{0,199}})?")
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))

_RESERVED = frozenset(
    {
        # Framing, connection and routing: RFC 9110 sections 7.6.1 and 10.1, RFC 9112 sections 6 and 9.
        *("host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "expect"),
        *("upgrade", "http2-settings", "via", "max-forwards"),
        # State that is not ours to send: RFC 6265.
        *("cookie", "set-cookie"),
        # Set by Homing for each attempt.
        *("accept-encoding", "content-encoding", "content-type", "traceparent", "user-agent", "x-request-id"),
    }
)
_RESERVED_PREFIXES = ("proxy-", "webhook-", "x-webhook-")


def check_event_headers(headers: object) -> dict[str, str]:
    """An event's own headers, names in lower case; empty for None.

    Args:
        headers: what the producer wrote: an object of at most 20 names and text values, 4,096 bytes in all.

    Raises:
        InvalidInput: naming the header and the rule; values are never repeated.
    """
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise InvalidInput("headers must be an object of names and text values")
    if len(headers) > MAX_HEADERS:
        raise InvalidInput(f"at most {MAX_HEADERS} headers are allowed")
    checked: dict[str, str] = {}
    size = 0
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidInput(f"header name {str(name)[:64]!r} is not a token (RFC 9110 section 5.6.2)")
        lower = name.lower()
        if is_reserved(lower):
            raise InvalidInput(f"header {lower[:64]!r} is set by Homing or by HTTP itself and cannot be chosen")
        if lower in checked:
            raise InvalidInput(f"header {lower[:64]!r} is given twice")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise InvalidInput(f"the value of header {lower[:64]!r} must be text of visible ASCII, spaces and tabs")
        checked[lower] = value.strip(" \t")
        size += len(lower) + len(checked[lower])
    if size > MAX_BYTES:
        raise InvalidInput(f"headers must not be longer than {MAX_BYTES} bytes in all")
    return checked


def is_reserved(name: str) -> bool:
    """Whether an event may not set the header with this lower-case name."""
    # CGI, and with it WSGI and PHP, show `webhook_id` to an application as the same variable as `webhook-id` (RFC 3875).
    name = name.replace("_", "-")
    return name in _RESERVED or name.startswith(_RESERVED_PREFIXES)


def build_headers(
    event_headers: Mapping[str, str] | None,
    signature: Mapping[str, str],
    *,
    request_id: str,
    traceparent: str | None,
    attempt: int,
) -> dict[str, str]:
    """All headers of one attempt except `host` and `content-length`, names in lower case.

    Args:
        event_headers: as they passed `check_event_headers`; what is reserved is left out again.
        signature: from `app.signing.sign`.
        request_id: percent-encoded (RFC 3986) where a header could not carry it.
        traceparent: sent only if it has the form of W3C Trace Context.
        attempt: number of this attempt since the last replay; 1 is the first.
    """
    headers = {n: value for name, value in (event_headers or {}).items() if not is_reserved(n := name.lower())}
    headers.update(signature)
    headers["content-type"] = "application/json"
    headers["accept-encoding"] = "identity"
    headers["user-agent"] = USER_AGENT
    headers["webhook-attempt"] = str(attempt)
    headers["x-request-id"] = quote(request_id, safe=_VISIBLE)
    if traceparent is not None and _TRACEPARENT.fullmatch(traceparent):
        headers["traceparent"] = traceparent
    return headers
