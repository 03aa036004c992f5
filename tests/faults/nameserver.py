"""A name server of the tests' own, and a lookup that asks it as the system's `getaddrinfo` would ask a real one.

    with NameServer({"a.example": [["127.0.0.1"]]}) as names:
        Transport(settings, getaddrinfo=names.getaddrinfo)

A name has rounds, one for each lookup, the last for ever: a list of addresses, or one of the behaviours below. Real
DNS messages go over a real socket, with TTL 0; only the choice of server is ours.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from time import monotonic
from types import TracebackType
from typing import Any

from dnslib import AAAA, CNAME, QTYPE, RCODE, RR, A, DNSRecord


@dataclass(frozen=True)
class Refusal:
    """An answer without records: NXDOMAIN, SERVFAIL, REFUSED; NOERROR is the empty answer."""

    code: str


@dataclass(frozen=True)
class Alias:
    """CNAMEs from the name over these, then addresses, if any."""

    names: tuple[str, ...]
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delayed:
    """The answer comes after so many seconds."""

    seconds: float
    addresses: tuple[str, ...]


Round = Sequence[str] | Refusal | Alias | Delayed

NXDOMAIN = Refusal("NXDOMAIN")
SERVFAIL = Refusal("SERVFAIL")
EMPTY = Refusal("NOERROR")

_WAIT_S = 5.0  # glibc: seconds for one question,
_TRIES = 2  # and how often it is put


class NameServer:
    """Serves while entered. `queries` are the names and types that were asked for, in order."""

    def __init__(self, zone: Mapping[str, Sequence[Round]]) -> None:
        self._zone = {name.lower(): list(rounds) for name, rounds in zone.items()}
        self._asked: Counter[tuple[str, str]] = Counter()
        self._stopping = threading.Event()
        self._timers: list[threading.Timer] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._serve, name="nameserver")
        self.queries: list[tuple[str, str]] = []

    def __enter__(self) -> NameServer:
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._socket.close()

    # --- the server ---------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                data, sender = self._socket.recvfrom(4096)
            except TimeoutError:
                continue
            question = DNSRecord.parse(data)
            name = str(question.q.qname).rstrip(".").lower()
            kind = str(QTYPE[question.q.qtype])
            self.queries.append((name, kind))
            rounds = self._zone.get(name, [NXDOMAIN])
            round_ = rounds[min(self._asked[name, kind], len(rounds) - 1)]
            self._asked[name, kind] += 1
            reply = _reply(question, kind, round_).pack()
            if isinstance(round_, Delayed):
                timer = threading.Timer(round_.seconds, self._socket.sendto, (reply, sender))
                self._timers.append(timer)
                timer.start()
            else:
                self._socket.sendto(reply, sender)

    # --- the client ---------------------------------------------------------------------------------------------

    def getaddrinfo(
        self, host: str, port: int, *, family: int = 0, type: int = 0, flags: int = 0
    ) -> list[tuple[Any, ...]]:
        """As `socket.getaddrinfo`: addresses in all their spellings are read by the C library and never asked for."""
        try:
            return list(socket.getaddrinfo(host, port, family=family, type=type, flags=socket.AI_NUMERICHOST))
        except socket.gaierror:
            name = host.encode("idna").decode("ascii")
        found: list[tuple[Any, ...]] = []
        codes = set()
        for kind in ("A", "AAAA"):
            answer = self._ask(name, kind)
            codes.add(str(RCODE[answer.header.rcode]))
            for record in answer.rr:
                if record.rtype == QTYPE.A:
                    found.append((socket.AF_INET, type, socket.IPPROTO_TCP, "", (str(record.rdata), port)))
                elif record.rtype == QTYPE.AAAA:
                    found.append((socket.AF_INET6, type, socket.IPPROTO_TCP, "", (str(record.rdata), port, 0, 0)))
        if not found:
            if codes - {"NOERROR", "NXDOMAIN"}:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            raise socket.gaierror(socket.EAI_NONAME if "NXDOMAIN" in codes else socket.EAI_NODATA, "no address")
        return found

    def _ask(self, name: str, kind: str) -> DNSRecord:
        question = DNSRecord.question(name, kind)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(0.02)
            for _ in range(_TRIES):
                asking.sendto(question.pack(), self._socket.getsockname())
                give_up_at = monotonic() + _WAIT_S
                while monotonic() < give_up_at and not self._stopping.is_set():
                    try:
                        return DNSRecord.parse(asking.recv(65536))
                    except TimeoutError:
                        continue
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def _reply(question: DNSRecord, kind: str, round_: Round) -> DNSRecord:
    reply = question.reply()
    owner = str(question.q.qname)
    if isinstance(round_, Refusal):
        reply.header.rcode = getattr(RCODE, round_.code)
        return reply
    if isinstance(round_, Alias):
        for target in round_.names:
            reply.add_answer(RR(owner, QTYPE.CNAME, rdata=CNAME(target), ttl=0))
            owner = target
    addresses = round_.addresses if isinstance(round_, Alias | Delayed) else round_
    for address in addresses:
        if kind == ("AAAA" if ":" in address else "A"):
            rdata = AAAA(tuple(IPv6Address(address).packed)) if kind == "AAAA" else A(address)
            reply.add_answer(RR(owner, getattr(QTYPE, kind), rdata=rdata, ttl=0))
    return reply
