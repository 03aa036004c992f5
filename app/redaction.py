"""Takes secrets out of text that others wrote, before it is stored or shown. Pure.

Used for error summaries and response excerpts. Prefers removing too much: a receiver's words are a hint for an
operator, not evidence. Every pattern runs in linear time: no two neighbouring repetitions can match the same text, and
what a pattern matches is consumed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import urlsplit

MARK = "[redacted]"

_LOOK_AHEAD = 4096
"""Characters inspected beyond the limit, so that a secret is recognised although its end will be cut off."""

_KEYS = (
    r"passw(?:or)?d|passwd|pwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|signature|credential|session[_-]?id"
)
# The end of a name as JSON, a form, a header, XML or JSON inside a JSON string write it.
_NAME_END = r"""[\w-]{0,40}(?:\\{0,3}["'])?[ \t]{0,8}[:=>][ \t]{0,8}"""
# A quoted value (its end may be missing: the text may have been cut), a list or an object.
_QUOTED = r"""\\{1,3}["'][^"'\\]*|"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|[\[{](?:"(?:[^"\\]|\\.)*"?|[^"\]}])*[\]}]?"""
_PAIR = re.compile(rf"""((?:{_KEYS}){_NAME_END})(?:{_QUOTED}|[^\r\n&;"'<>}}\]]+)""", re.IGNORECASE | re.DOTALL)
# Header values that contain ; and , themselves: up to the end of the line.
_HEADER = re.compile(rf"""((?:authorization|cookie){_NAME_END})(?:{_QUOTED}|[^\r\n]+)""", re.IGNORECASE | re.DOTALL)
_CREDENTIAL = re.compile(
    r"""whsec_[A-Za-z0-9+/=_-]*"""
    r"""|\b(?:bearer|basic)[ \t]{1,8}[^\s"'<>,;]+"""
    r"""|\bv1a?[=,][A-Za-z0-9+/=_-]{8,}"""
    r"""|\bsha(?:1|256|512)=[0-9a-f]{16,}"""
    r"""|\beyJ[\w-]{5,}\.[\w.-]*""",  # a JSON Web Token, RFC 7519
    re.IGNORECASE,
)
_URL_REST = re.compile(r"""://[^\s"'<>]*""")
_IPV4 = r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?(?![\w.])"
_IPV6 = r"\[?(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f.]{0,15}(?:%\w{1,15})?(?:\]:\d{1,5})?\]?"
_ADDRESS = re.compile(f"{_IPV4}|{_IPV6}", re.IGNORECASE)

# Control characters (RFC 20, ISO 6429), which Postgres (NUL) or a terminal would not take well, and the bidirectional
# controls of Unicode Annex 9, which make text look like other text. Tab and line ends become spaces at the very end.
_UNWANTED = dict.fromkeys(
    code
    for first, end in ((0, 0x20), (0x7F, 0xA0), (0x200E, 0x2010), (0x202A, 0x202F), (0x2066, 0x206A))
    for code in range(first, end)
    if chr(code) not in "\t\r\n"
)
_ONE_LINE = {ord(c): " " for c in "\t\r\n\u2028\u2029"}


def redact(text: str | bytes, limit: int) -> str:
    """`text` on one line, without secrets and control characters, at most `limit` bytes of UTF-8.

    Removes signing secrets, signatures, bearer and basic credentials, JSON Web Tokens, the values of keys and headers
    whose name says that they are secret, and the userinfo and query of URLs. Undecodable bytes become U+FFFD.
    """
    text = text[: limit + _LOOK_AHEAD]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    text = text.translate(_UNWANTED)
    text = _HEADER.sub(rf"\1{MARK}", text)
    text = _PAIR.sub(rf"\1{MARK}", text)
    text = _CREDENTIAL.sub(MARK, text)
    text = _URL_REST.sub(_without_credentials, text)
    return _cut(text.translate(_ONE_LINE).strip(), limit)


def redact_addresses(text: str) -> str:
    """`text` without IP addresses and the ports that follow them."""
    return _ADDRESS.sub("[address]", text)


@lru_cache(maxsize=4096)
def safe_url(url: str) -> str:
    """Scheme, host and port of `url`; the rest may be a credential. What cannot be read is `[invalid url]`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "[invalid url]"
    if not parts.scheme or not host:
        return "[invalid url]"
    host = f"[{host}]" if ":" in host else host
    return redact(f"{parts.scheme}://{host}" + (f":{port}" if port is not None else ""), 300)


def _without_credentials(match: re.Match[str]) -> str:
    """`://authority/path` of `://user:password@authority/path?query#fragment`."""
    rest = match[0][3:]
    path_at = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    authority, path = rest[:path_at], rest[path_at:]
    userinfo, _, host = authority.rpartition("@")
    if userinfo:
        authority = f"{MARK}@{host}"
    elif match.end() == len(match.string) and not authority.rpartition(":")[2].isdigit() and ":" in authority:
        authority = MARK  # cut off before its "@"
    bare = re.split("[?#]", path, maxsplit=1)[0]
    return f"://{authority}{bare}" + (f"?{MARK}" if len(bare) < len(path) else "")


def _cut(text: str, limit: int) -> str:
    # "replace" for lone surrogates, which a str may hold and UTF-8 may not.
    raw = text.encode("utf-8", "replace")
    return raw.decode("utf-8") if len(raw) <= limit else raw[: max(limit, 0)].decode("utf-8", "ignore")
