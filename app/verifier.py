"""For receivers: is this request really from Homing, and has it been worked on before?

One file with nothing but the standard library (Python 3.11 or later) and nothing of Homing: copy it into your project.

    verifier = Verifier("whsec_...")                        # or several, while a secret is rotated
    result = verifier.verify(request.headers, raw_body)     # the bytes as they arrived, before any parsing
    if not result:                                          # result.reason and result.detail say why
        ...                                                 # answer 401

`verify` says whether a request is genuine and recent; it does no I/O and keeps nothing. Whether its event is new is asked
of a memory, and only after `verify` said yes:

    ProcessMemory    in this process; lost when it ends, not shared with other processes
    RedisMemory      shared by processes; a crash at a bad moment can make work happen twice, never not at all
    PostgresMemory   in the transaction of the work itself: the only one that makes it happen exactly once

An id counts as seen when the work is done, not when the request arrives: a receiver that dies before its work must get
the event again, and one that did its work and then answered 503 must recognise the retry. So the work is put between
`begin` and `done` (Redis, process), or into the transaction that remembers the id (Postgres).

A `webhook-id` is the id of the event, the same for every endpoint that the event goes to, and the same on retries and
replays. Give each endpoint a memory of its own (a `namespace`), or the second endpoint's copy is taken for a duplicate.
What is signed: HMAC-SHA256 (RFC 2104) over `id.timestamp.body` with scheme `standard` (Standard Webhooks 1.0.0), over
`timestamp.body` with scheme `hex`. With `hex` the id is not signed: whoever can record a request can send it again
under another id while it is recent. Prefer `standard`.
"""

from __future__ import annotations

import hmac
import re
import time
from base64 import b64decode, b64encode
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from threading import Lock
from typing import Any

WINDOW_S = 300
"""How far a timestamp may lie from this machine's clock, before and after."""
KEEP_S = 86_400
"""How long an id is remembered after its work was done."""
CLAIM_S = 60
"""How long `begin` holds an id for work that never says `done`; must be longer than the work can take."""

_ID = re.compile(r"[A-Za-z0-9_:-]{1,255}")
_TIMESTAMP = re.compile(r"0|[1-9][0-9]{0,14}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,100}")  # no colon, which an id may have: no two endpoints mean the same key
_SIGNATURES_MAX = 8192  # characters of a signature header; two keys need about 150


class Reason(StrEnum):
    """Why a request was accepted (`ok`) or not (all others)."""

    OK = "ok"
    UNREADABLE = "unreadable"  # the headers are neither a mapping nor pairs, or the body is not bytes
    MISSING_HEADER = "missing_header"
    REPEATED_HEADER = "repeated_header"
    MALFORMED_ID = "malformed_id"
    MALFORMED_TIMESTAMP = "malformed_timestamp"
    MALFORMED_SIGNATURE = "malformed_signature"  # not one signature of version v1 among those that were sent
    TOO_OLD = "too_old"
    TOO_NEW = "too_new"
    WRONG_SIGNATURE = "wrong_signature"  # changed on the way, signed with another secret, or not the raw body


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found; true in an `if` exactly when the request is genuine and recent.

    `detail` is one line for a log, without any text of the request. The `event_id`, and the `timestamp` of the attempt
    (seconds since 1970 UTC), are empty and 0 unless ok.
    """

    reason: Reason
    detail: str = ""
    event_id: str = ""
    timestamp: int = 0

    @property
    def ok(self) -> bool:
        return self.reason is Reason.OK

    def __bool__(self) -> bool:
        return self.ok


class Verifier:
    """Checks requests for one endpoint; may be shared between threads.

    Args:
        keys: the endpoint's secret, as `whsec_` and base64 or as 24 to 64 bytes; or several of them, while a secret is
            rotated. A request is genuine if any signature in it was made with any of them.
        scheme: `standard` or `hex`, as the endpoint was created.

    Raises:
        ValueError: no key, something that is not a key, an unknown scheme, or a negative window; never repeats a key.
    """

    def __init__(
        self,
        keys: str | bytes | Collection[str | bytes],
        *,
        scheme: str = "standard",
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if scheme not in ("standard", "hex"):
            raise ValueError("the scheme must be standard or hex")
        if not window_s >= 0:
            raise ValueError("the window must be zero seconds or more")
        if not isinstance(keys, Collection) or not keys:
            raise ValueError("a verifier needs at least one key")
        self._keys = [_key(key) for key in ([keys] if isinstance(keys, str | bytes) else keys)]
        self._hex, self._window_s, self._clock = scheme == "hex", window_s, clock
        self._names = [("x-" if self._hex else "") + f"webhook-{part}" for part in ("id", "timestamp", "signature")]

    def verify(self, headers: object, body: object) -> Verification:
        """Whether a request is genuine and recent; never raises, whatever is passed.

        Headers are a mapping or pairs of names and values, text or bytes, names in any case. The body is the bytes exactly
        as they arrived: parsing and writing them again changes them.
        """
        now = self._clock()
        try:
            return self._verify(headers, body, now)
        except Exception:  # whatever a header object does when it is read
            return Verification(Reason.UNREADABLE, "the headers could not be read")

    def _verify(self, headers: Any, body: object, now: float) -> Verification:
        if not isinstance(body, bytes | bytearray | memoryview):
            return Verification(Reason.UNREADABLE, "the body must be the raw bytes, before any parsing")
        found: dict[str, list[object]] = {name: [] for name in self._names}
        for name, value in islice(headers.items() if hasattr(headers, "items") else headers, 10_000):
            if (known := found.get(_text(name, 64).lower())) is not None:
                known.extend(value if isinstance(value, list | tuple) else [value])
        for name, values in found.items():
            if not values or values[0] in (None, "", b""):
                return Verification(Reason.MISSING_HEADER, f"{name} is missing")
            if len(values) > 1:
                return Verification(Reason.REPEATED_HEADER, f"{name} is there more than once")
        event_id, sent_at, signatures = (_text(values[0], _SIGNATURES_MAX) for values in found.values())
        if not _ID.fullmatch(event_id):
            return Verification(Reason.MALFORMED_ID, f"{self._names[0]} is not 1 to 255 of A-Z a-z 0-9 _ : -")
        if not _TIMESTAMP.fullmatch(sent_at):
            return Verification(Reason.MALFORMED_TIMESTAMP, f"{self._names[1]} is not whole seconds since 1970")
        form = r"v1=[0-9a-f]{64}" if self._hex else r"v1,[A-Za-z0-9+/]{43}="
        given = [s for s in signatures.split("," if self._hex else " ") if re.fullmatch(form, s)]
        if not given:
            return Verification(Reason.MALFORMED_SIGNATURE, f"{self._names[2]} has no signature of version v1")
        timestamp = int(sent_at)
        if timestamp < now - self._window_s:
            return Verification(Reason.TOO_OLD, f"{now - timestamp:.0f} s old: late, recorded, or this clock is ahead")
        if timestamp > now + self._window_s:
            return Verification(Reason.TOO_NEW, f"{timestamp - now:.0f} s in the future: this clock is behind")
        if not self._signed((sent_at if self._hex else f"{event_id}.{sent_at}") + ".", body, given):
            return Verification(Reason.WRONG_SIGNATURE, "no signature fits: another secret, or not the raw body")
        return Verification(Reason.OK, "", event_id, timestamp)

    def _signed(self, start: str, body: bytes | bytearray | memoryview, given: list[str]) -> bool:
        """Whether any key made any of the given signatures; all are compared, each in constant time."""
        matched = False
        for key in self._keys:
            mac = hmac.new(key, start.encode("ascii"), "sha256")
            mac.update(body)
            expected = f"v1={mac.hexdigest()}" if self._hex else f"v1,{b64encode(mac.digest()).decode('ascii')}"
            for signature in given:
                matched |= hmac.compare_digest(expected, signature)
        return matched


class Turn(StrEnum):
    """Whose turn it is to work on an event."""

    FIRST = "first"  # yours: do the work, then `done`; if the work fails, `release`
    BUSY = "busy"  # another copy is being worked on: answer 503 with Retry-After, never 2xx, since that copy may fail
    DONE = "done"  # a duplicate: do nothing and answer 2xx


class ProcessMemory:
    """Ids seen by this process, for one endpoint (the instance is the namespace). Safe to share between threads.

    Of two copies at once, one is first and the other busy. A restart forgets everything, and other processes know
    nothing of it: for receivers of one process whose work may happen twice after a restart.
    At most `max_ids` are kept, about 200 bytes each; the oldest go first, so size it for what arrives in `keep_s`.
    """

    def __init__(
        self,
        *,
        keep_s: float = KEEP_S,
        claim_s: float = CLAIM_S,
        max_ids: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if min(keep_s, claim_s, max_ids) <= 0:
            raise ValueError("keep_s, claim_s and max_ids must be more than zero")
        self._keep_s, self._claim_s, self._max_ids, self._clock = keep_s, claim_s, max_ids, clock
        self._lock = Lock()
        self._done: OrderedDict[str, float] = OrderedDict()  # when each ends; the first to end is always in front
        self._claimed: OrderedDict[str, float] = OrderedDict()

    def begin(self, event_id: str) -> Turn:
        """Whose turn it is. Answers busy as well when `max_ids` are being worked on at once."""
        with self._lock:
            now = self._clock()
            for ends in (self._done, self._claimed):
                while ends and next(iter(ends.values())) <= now:
                    ends.popitem(last=False)
            if event_id in self._done:
                return Turn.DONE
            if event_id in self._claimed or len(self._claimed) >= self._max_ids:
                return Turn.BUSY
            self._claimed[event_id] = now + self._claim_s
            return Turn.FIRST

    def done(self, event_id: str) -> None:
        """The work is done: from now on the id is a duplicate. Say it before answering."""
        with self._lock:
            self._claimed.pop(event_id, None)
            self._done.pop(event_id, None)
            self._done[event_id] = self._clock() + self._keep_s
            if len(self._done) > self._max_ids:
                self._done.popitem(last=False)

    def release(self, event_id: str) -> None:
        """The work failed and left nothing behind: the retry may do it."""
        with self._lock:
            self._claimed.pop(event_id, None)


class RedisMemory:
    """Ids in Redis or Valkey, shared by all processes of one endpoint: `SET NX EX` claims, a second key says done.

    Of two copies at once, one is first and the other busy. A crash before the work is done frees the id after `claim_s`.
    A crash, or a Redis that is away, between the work and `done` makes the retry do the work again; so does work that
    takes longer than `claim_s`, and a Redis that loses or evicts its data. Errors of the client go through: answer 503.

    The client is synchronous, not a pipeline; from async code, call the memory in a thread. The namespace is which
    endpoint this is, 1 to 100 of `A-Za-z0-9_-`; no two endpoints may share one. `keep_s` and `claim_s` are whole seconds.
    """

    def __init__(self, client: Any, namespace: str, *, keep_s: int = KEEP_S, claim_s: int = CLAIM_S) -> None:
        if not callable(getattr(client, "set", None)):
            raise ValueError("the client must have a method `set`")
        if type(keep_s) is not int or type(claim_s) is not int or keep_s < 1 or claim_s < 1:
            raise ValueError("keep_s and claim_s must be whole seconds, 1 or more")
        self._client, self._keep_s, self._claim_s = client, keep_s, claim_s
        self._prefix = f"webhook:{_checked_namespace(namespace)}"

    def begin(self, event_id: str) -> Turn:
        """Whose turn it is."""
        # The claim comes first: once it is ours, whoever had it before has said done, or never will.
        mine = self._set("claim", event_id, ex=self._claim_s, nx=True)
        if self._set("done", event_id, ex=self._keep_s, xx=True):
            return Turn.DONE
        return Turn.FIRST if mine else Turn.BUSY

    def done(self, event_id: str) -> None:
        """As for `ProcessMemory`."""
        self._set("done", event_id, ex=self._keep_s)

    def release(self, event_id: str) -> None:
        """As for `ProcessMemory`, a second later."""
        self._set("claim", event_id, ex=1)

    def _set(self, part: str, event_id: str, **options: Any) -> bool:
        answer = self._client.set(f"{self._prefix}:{part}:{event_id}", "1", **options)
        if answer in (True, "OK", b"OK"):
            return True
        if answer in (None, False):
            return False
        raise TypeError("the client must be synchronous and no pipeline: what those answer always counts as true")


class PostgresMemory:
    """Ids in a table of your database, remembered by the transaction that does the work.

        CREATE TABLE webhook_seen (
            namespace text NOT NULL,
            event_id text NOT NULL,
            seen_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (namespace, event_id)
        );
        CREATE INDEX ON webhook_seen (seen_at);

    Call `begin` first in the transaction, do the work in the same one, commit, then answer: the work and the memory of
    it happen together or not at all. There is no `done` and no `release`: they are COMMIT and ROLLBACK. Of two copies at
    once, the second waits in `begin` until the first one's transaction ends (`SET lock_timeout` limits that), and is
    first itself if that was rolled back; it never gets busy. Above READ COMMITTED it may get a serialization error
    instead. Errors of the driver go through: answer 503.

    The connection is any of DB-API with `%s` placeholders (psycopg, psycopg2, pg8000). Outside of a transaction `begin`
    fails (SQLSTATE 25P01): with autocommit, a crash before the work would lose the event. Namespace as with Redis.
    """

    def __init__(self, connection: Any, namespace: str, *, keep_s: float = KEEP_S) -> None:
        if not callable(getattr(connection, "cursor", None)) or not keep_s > 0:
            raise ValueError("the connection must have a method `cursor`, and keep_s must be more than zero")
        self._connection, self._namespace, self._keep_s = connection, _checked_namespace(namespace), keep_s

    def begin(self, event_id: str) -> Turn:
        """Whose turn it is: first or done."""
        with closing(self._connection.cursor()) as cursor:
            cursor.execute("SAVEPOINT webhook_begin")  # an error outside of a transaction
            cursor.execute("RELEASE SAVEPOINT webhook_begin")
            cursor.execute(
                "INSERT INTO webhook_seen (namespace, event_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (self._namespace, event_id),
            )
            return Turn.FIRST if cursor.rowcount == 1 else Turn.DONE

    def forget_old(self) -> int:
        """Delete this endpoint's ids that are older than `keep_s`; how many. Call it now and then, and commit."""
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(
                "DELETE FROM webhook_seen WHERE namespace = %s AND seen_at < now() - make_interval(secs => %s)",
                (self._namespace, self._keep_s),
            )
            return int(cursor.rowcount)


def _text(value: object, longest: int) -> str:
    """A header's name or value as text; empty, which fits nothing, unless it is ASCII and not too long."""
    if isinstance(value, bytes | bytearray) and len(value) <= longest:
        value = value.decode("latin-1")
    return value if isinstance(value, str) and len(value) <= longest and value.isascii() else ""


def _key(key: object) -> bytes:
    """The bytes of a key; base64 read strictly (RFC 4648 section 4), since a lax reader verifies with other bytes."""
    secret = key if isinstance(key, bytes) else b""
    if isinstance(key, str) and key.startswith("whsec_"):
        with suppress(ValueError):
            secret = b64decode(key[6:], validate=True)
        if b64encode(secret).decode("ascii") != key[6:]:
            secret = b""
    if not 24 <= len(secret) <= 64:  # as Standard Webhooks demands; the message never repeats the key
        raise ValueError("a key must be whsec_ followed by padded standard base64 of 24 to 64 bytes, or those bytes")
    return secret


def _checked_namespace(namespace: str) -> str:
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        raise ValueError("a namespace must be 1 to 100 of A-Z a-z 0-9 _ -")
    return namespace
