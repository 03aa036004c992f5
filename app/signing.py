"""Signature headers of one attempt, and the text form of signing secrets. Pure.

Two schemes, chosen per endpoint:

    standard   Standard Webhooks 1.0.0: `webhook-id`, `webhook-timestamp`, `webhook-signature: v1,<base64>`
               over `id.timestamp.body`; several signatures are separated by one space
    hex        `x-webhook-id`, `x-webhook-timestamp`, `x-webhook-key-id`, `x-webhook-signature: v1=<hex>`
               over `timestamp.body`; several key ids and signatures are separated by a comma, in the same order

Both are HMAC-SHA256 (RFC 2104) over exactly the bytes that are sent. While a secret is being rotated, both keys sign.
"""

from __future__ import annotations

import hmac
import re
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from app.errors import InvalidInput

SECRET_PREFIX = "whsec_"  # noqa: S105 - the public mark of a symmetric secret (Standard Webhooks, "Signature scheme")
SECRET_MIN_BYTES = 24
"""Shortest secret that Standard Webhooks allows."""
SECRET_MAX_BYTES = 64
"""Longest secret that Standard Webhooks allows; also the block size of SHA-256."""

# No "." (it separates the signed parts), and nothing that would need quoting in a header or a comma-separated list.
_IDENTIFIER = re.compile(r"[A-Za-z0-9_:-]{1,255}")


class Scheme(StrEnum):
    """How an endpoint wants its deliveries signed."""

    STANDARD = "standard"
    HEX = "hex"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One secret of an endpoint; its repr hides the secret.

    Raises:
        InvalidInput: the key id has characters outside `A-Za-z0-9_:-`, or the secret is not 24 to 64 bytes long.
    """

    key_id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not _IDENTIFIER.fullmatch(self.key_id):
            raise InvalidInput("a signing key's id must be 1 to 255 of A-Z a-z 0-9 _ : -")
        _check_length(self.secret)


def sign(scheme: str, keys: Sequence[SigningKey], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The signature headers of one attempt, names in lower case.

    Args:
        scheme: `standard` or `hex`.
        keys: at least one, newest first; every one signs.
        webhook_id: stable over retries and replays; 1 to 255 of `A-Za-z0-9_:-`. With `hex` it is sent, not signed.
        timestamp: when this attempt is made, whole seconds since 1970 UTC, not negative.
        body: exactly the bytes that will be sent.

    Raises:
        InvalidInput: an argument is outside what is stated above.
    """
    if not keys:
        raise InvalidInput("a delivery needs at least one signing key")
    if not _IDENTIFIER.fullmatch(webhook_id):
        raise InvalidInput("a webhook id must be 1 to 255 of A-Z a-z 0-9 _ : -")
    if type(timestamp) is not int or timestamp < 0:
        raise InvalidInput("a signature's timestamp must be whole seconds since 1970, not negative")
    if scheme == Scheme.STANDARD:
        content = b"%s.%d.%s" % (webhook_id.encode("ascii"), timestamp, body)
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join("v1," + b64encode(_mac(key, content)).decode("ascii") for key in keys),
        }
    if scheme == Scheme.HEX:
        content = b"%d.%s" % (timestamp, body)
        return {
            "x-webhook-id": webhook_id,
            "x-webhook-timestamp": str(timestamp),
            "x-webhook-key-id": ",".join(key.key_id for key in keys),
            "x-webhook-signature": ",".join("v1=" + _mac(key, content).hex() for key in keys),
        }
    raise InvalidInput("the signing scheme must be standard or hex")


def new_secret() -> str:
    """A fresh secret of 32 random bytes in text form, `whsec_` and base64."""
    return SECRET_PREFIX + b64encode(secrets.token_bytes(32)).decode("ascii")


def parse_secret(text: str) -> bytes:
    """The 24 to 64 bytes of a secret in text form.

    Base64 is read strictly (RFC 4648 section 4: standard alphabet, padded, canonical), because a lax reader silently
    signs with other bytes than the receiver verifies with.

    Raises:
        InvalidInput: the text is not such a secret; the message never repeats it.
    """
    if not text.startswith(SECRET_PREFIX):
        raise InvalidInput(f"a signing secret must start with {SECRET_PREFIX}")
    encoded = text.removeprefix(SECRET_PREFIX)
    try:
        secret = b64decode(encoded, validate=True)
    except ValueError:
        # `from None`: the traceback of the cause may carry the text.
        raise InvalidInput(f"a signing secret must be {SECRET_PREFIX} followed by padded standard base64") from None
    if b64encode(secret).decode("ascii") != encoded:
        raise InvalidInput(f"a signing secret must be {SECRET_PREFIX} followed by canonical base64")
    _check_length(secret)
    return secret


def _check_length(secret: bytes) -> None:
    if not SECRET_MIN_BYTES <= len(secret) <= SECRET_MAX_BYTES:
        raise InvalidInput(f"a signing secret must be {SECRET_MIN_BYTES} to {SECRET_MAX_BYTES} bytes long")


def _mac(key: SigningKey, content: bytes) -> bytes:
    return hmac.digest(key.secret, content, "sha256")
