"""Which IP addresses may be called: the egress guard against server-side request forgery. Pure.

Judges the address that is about to be dialled, never the text of a URL. Everything that is not ordinary public unicast
is refused, unless the operator opened its network. An IPv6 address that carries an IPv4 address must pass with both.
Outside the opened networks the port must be an allowed one and the connection encrypted, unless the operator says
otherwise. Homing's own servers are refused even inside an opened network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from errno import EACCES
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


NOT_CALLABLE = "the host is, or resolves to, an address that may not be called"
PORT_REFUSED = "the port is not one of HOMING_ALLOW_PORTS"
PLAIN_HTTP_REFUSED = "plain http to a public host is refused: use https, or set HOMING_ALLOW_HTTP=true"


class BlockedAddressError(PermissionError):
    """An address may not be called. Never carries the address: what a name resolves to inside is not shown."""

    def __init__(self, message: str = NOT_CALLABLE) -> None:
        super().__init__(EACCES, message)


# IANA "IPv4 Special-Purpose Address Registry" and "IPv4 Multicast Address Space Registry".
_IPV4_DENIED: tuple[tuple[IPv4Network, str], ...] = tuple(
    (IPv4Network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "this network (RFC 791)"),
        ("10.0.0.0/8", "private use (RFC 1918)"),
        ("100.64.0.0/10", "shared address space (RFC 6598)"),
        ("127.0.0.0/8", "loopback (RFC 1122)"),
        ("168.63.129.16/32", "Azure platform service (Azure documentation, 'What is IP address 168.63.129.16')"),
        ("169.254.0.0/16", "link-local, cloud metadata (RFC 3927)"),
        ("172.16.0.0/12", "private use (RFC 1918)"),
        ("192.0.0.0/24", "IETF protocol assignments (RFC 6890)"),
        ("192.0.2.0/24", "documentation (RFC 5737)"),
        ("192.88.99.0/24", "6to4 relay anycast (RFC 7526)"),
        ("192.168.0.0/16", "private use (RFC 1918)"),
        ("198.18.0.0/15", "benchmarking (RFC 2544)"),
        ("198.51.100.0/24", "documentation (RFC 5737)"),
        ("203.0.113.0/24", "documentation (RFC 5737)"),
        ("224.0.0.0/4", "multicast (RFC 5771)"),
        ("240.0.0.0/4", "reserved, broadcast (RFC 1112, RFC 919)"),
    )
)

# IANA "IPv6 Special-Purpose Address Registry"; the first match names the reason.
_IPV6_DENIED: tuple[tuple[IPv6Network, str], ...] = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("::1/128", "loopback (RFC 4291)"),
        ("::/96", "unspecified, IPv4-compatible (RFC 4291)"),
        ("64:ff9b::/96", "IPv4 translation (RFC 6052)"),
        ("64:ff9b:1::/48", "local IPv4 translation (RFC 8215)"),
        ("100::/64", "discard (RFC 6666)"),
        ("2001::/32", "Teredo (RFC 4380)"),
        ("2001::/23", "IETF protocol assignments (RFC 2928)"),
        ("2001:db8::/32", "documentation (RFC 3849)"),
        ("2002::/16", "6to4 (RFC 3056)"),
        ("3fff::/20", "documentation (RFC 9637)"),
        ("5f00::/16", "segment routing (RFC 9602)"),
        ("fc00::/7", "unique local (RFC 4193)"),
        ("fe80::/10", "link-local (RFC 4291)"),
        ("fec0::/10", "site-local (RFC 3879)"),
        ("ff00::/8", "multicast (RFC 4291)"),
    )
)

# All that IANA has given out as global unicast ("Internet Protocol Version 6 Address Space").
_IPV6_GLOBAL = IPv6Network("2000::/3")
_IPV4_COMPATIBLE = IPv6Network("::/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
# Interface identifiers 0000:5efe and 0200:5efe, RFC 5214 section 6.1.
_ISATAP = (0x00005EFE, 0x02005EFE)


# Ports 1 to 1023 belong to other protocols' servers, except the two of the web.
PORTS = (range(80, 81), range(443, 444), range(1024, 65536))


class AddressGuard:
    """Decides which addresses may be dialled.

    Args:
        allowed: networks that are open although they are not public; any port and plain http too.
        ports: what may be dialled elsewhere.
        plain_http: whether connections elsewhere may be unencrypted.
        own: addresses and ports of Homing's own servers, closed even inside an allowed network. One on a loopback
            address closes its port on all of them.
    """

    def __init__(
        self,
        allowed: Iterable[Network] = (),
        *,
        ports: Collection[range] = PORTS,
        plain_http: bool = False,
        own: Iterable[tuple[str, int]] = (),
    ) -> None:
        self._allowed = tuple(allowed)
        self._ports = ports
        self._plain_http = plain_http
        self._own = frozenset((_place(ip_address(ip)), port) for ip, port in own)

    def check(self, ip: str, port: int, *, encrypted: bool) -> None:
        """Return when this may be dialled.

        Raises:
            BlockedAddressError: it may not.
        """
        if self.verdict(ip) is not None:
            raise BlockedAddressError
        address = ip_address(ip)
        if self._own and (_place(address), port) in self._own:
            raise BlockedAddressError
        if all(self._is_allowed(candidate) for candidate in _candidates(address)):
            return
        if not any(port in ports for ports in self._ports):
            raise BlockedAddressError(PORT_REFUSED)
        if not encrypted and not self._plain_http:
            raise BlockedAddressError(PLAIN_HTTP_REFUSED)

    def verdict(self, ip: str | Address) -> str | None:
        """None when the address may be dialled, else the reason, for operators only.

        Accepts an IPv6 zone (`fe80::1%eth0`), which changes nothing. What is not an IP address is refused.
        """
        try:
            address = ip_address(ip) if isinstance(ip, str) else ip
        except ValueError:
            return "not an IP address"
        for candidate in _candidates(address):
            if (reason := self._refusal(candidate)) is not None:
                return reason
        if isinstance(address, IPv6Address) and address.ipv4_mapped and not self._is_allowed(address.ipv4_mapped):
            return "IPv4-mapped (RFC 4291)"  # never in honest DNS, and a second spelling of an IPv4 address elsewhere
        return None

    def _refusal(self, address: Address) -> str | None:
        if self._is_allowed(address):
            return None
        if isinstance(address, IPv4Address):
            return next((reason for network, reason in _IPV4_DENIED if address in network), None)
        for network, reason in _IPV6_DENIED:
            if address in network:
                return reason
        return None if address in _IPV6_GLOBAL else "not global unicast (IANA IPv6 address space)"

    def _is_allowed(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._allowed)


def _candidates(address: Address) -> list[Address]:
    """All addresses that must pass for this one to pass."""
    if isinstance(address, IPv4Address):
        return [address]
    address = IPv6Address(int(address))  # without its zone
    if address.ipv4_mapped is not None:
        # The kernel dials IPv4 for these (RFC 4038 section 4.2), so only the IPv4 address counts.
        return [address.ipv4_mapped]
    return [address, *embedded_ipv4(address)]


def _place(address: Address) -> str:
    """Where a connection to the address ends: all loopback and unspecified addresses are the same place."""
    plain = _candidates(address)[0]
    return "loopback" if plain.is_loopback or plain.is_unspecified else str(plain)


def embedded_ipv4(address: IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses that an IPv6 address carries for a translator or a tunnel; mapped ones are not among them."""
    value = int(address)
    found: list[int] = []
    if (address in _IPV4_COMPATIBLE and value > 1) or address in _NAT64:
        found.append(value & 0xFFFFFFFF)
    elif address in _NAT64_LOCAL:
        # RFC 6052 section 2.2: with a /48 prefix the address is split around bits 64-71, with a /96 it comes last.
        found += [(value >> 64 & 0xFFFF) << 16 | value >> 40 & 0xFFFF, value & 0xFFFFFFFF]
        found = [candidate for candidate in found if candidate] or [0]
    elif address.sixtofour is not None:
        found.append(int(address.sixtofour))
    elif address.teredo is not None:
        found += [int(part) for part in address.teredo]
    if value >> 32 & 0xFFFFFFFF in _ISATAP:
        found.append(value & 0xFFFFFFFF)
    return [IPv4Address(candidate) for candidate in found]
