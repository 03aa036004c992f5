"""Checks the URL of an endpoint when it is written. Pure; no name is resolved.

This is for early, clear refusals. Whether an address may be called is judged when it is dialled (`app.addresses`): a
name can mean another address tomorrow.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import httpx

from app.errors import InvalidInput

MAX_LENGTH = 2048
_DEFAULT_PORTS = {"http": 80, "https": 443}  # RFC 9110 sections 4.2.1 and 4.2.2

# Hosts as they are after IDNA encoding: labels of 1 to 63, RFC 1035 section 2.3.4; "_" occurs in internal names.
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_][a-z0-9_-]{0,62})*\.?")
# WHATWG URL, "ends in a number checker": resolvers read such hosts as IPv4 addresses in many spellings.
_ENDS_IN_NUMBER = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?$")


def validate_endpoint_url(text: str) -> str:
    """The URL in its normal form: scheme and host in lower case, IDNA-encoded host, default port left out.

    Raises:
        InvalidInput: naming what is wrong. The message never repeats the URL, which may carry a credential.
    """
    if not isinstance(text, str):
        raise InvalidInput("the endpoint's URL must be text")
    if len(text) > MAX_LENGTH:
        raise InvalidInput(f"the endpoint's URL must not be longer than {MAX_LENGTH} characters")
    if any(not character.isprintable() or character.isspace() for character in text):
        raise InvalidInput("the endpoint's URL must not contain whitespace or control characters")
    if "\\" in text:
        raise InvalidInput("the endpoint's URL must not contain a backslash")
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        raise InvalidInput("the endpoint's URL cannot be read as a URL") from None
    if url.scheme not in _DEFAULT_PORTS:
        raise InvalidInput("the endpoint's URL must begin with https:// or http://")
    if url.userinfo or "@" in text.split("://", 1)[-1].split("/", 1)[0]:
        raise InvalidInput("the endpoint's URL must not contain a user name or password")
    if "#" in text:
        raise InvalidInput("the endpoint's URL must not contain a fragment (#)")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise InvalidInput("the endpoint's URL must have a port from 1 to 65535")
    port = "" if url.port in (None, _DEFAULT_PORTS[url.scheme]) else f":{url.port}"
    normal = f"{url.scheme}://{_normal_host(host)}{port}{url.raw_path.decode('ascii')}"
    if len(normal) > MAX_LENGTH:
        raise InvalidInput(f"the endpoint's URL must not be longer than {MAX_LENGTH} characters once encoded")
    return normal


def _normal_host(host: str) -> str:
    """The host as it stands in the normal form.

    Raises:
        InvalidInput: it is empty, malformed, or an IP address in another spelling than the usual one.
    """
    if not host:
        raise InvalidInput("the endpoint's URL must have a host")
    if ":" in host:
        if "%" in host:
            raise InvalidInput("the host of the endpoint's URL must not have an IPv6 zone")
        try:
            return f"[{IPv6Address(host)}]"
        except AddressValueError:
            raise InvalidInput("the host of the endpoint's URL is not a valid IPv6 address") from None
    if not _HOST.fullmatch(host):
        raise InvalidInput("the host of the endpoint's URL is not a valid host name")
    if _ENDS_IN_NUMBER.search(host):
        try:
            IPv4Address(host)
        except AddressValueError:
            raise InvalidInput(
                "the host of the endpoint's URL ends in a number: write an IPv4 address as four decimal numbers"
            ) from None
    return host
