"""Certificates for receivers of the tests: one authority that may be trusted, and one that nobody trusts."""

from __future__ import annotations

import ssl
from datetime import datetime
from functools import cache
from pathlib import Path

import trustme


@cache
def authority(name: str = "trusted") -> trustme.CA:
    return trustme.CA(organization_name=name)


def trust(path: Path, *authorities: trustme.CA) -> str:
    """A file for SSL_CERT_FILE, which replaces the system's certificates; also much faster to read than they are."""
    file = path / "authorities.pem"
    file.write_bytes(b"".join(ca.cert_pem.bytes() for ca in authorities or [authority()]))
    return str(file)


def server_context(
    *names: str,
    ca: trustme.CA | None = None,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    common_name: str | None = None,
) -> ssl.SSLContext:
    """What a receiver with a certificate for these host names or addresses serves with."""
    issued = (ca or authority()).issue_cert(*names, not_before=not_before, not_after=not_after, common_name=common_name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    return context
