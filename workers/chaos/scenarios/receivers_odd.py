"""F27 to F30: receivers that speak nonsense, break off, send elsewhere, or say no in every way that HTTP has."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from app.backoff import RetryPolicy
from workers.chaos.load import TENANTS, Destination
from workers.chaos.scenario import Expect, Scenario
from workers.chaos.stage import DEADLINE_S
from workers.chaos.trial import Trial

CAP_S = 3.0
SCHEDULE_S = (0.2, 0.5, 1.0)
_FIRST = """
    SELECT a.outcome, a.failure_class, a.http_status, a.error, a.duration_ms / 1000.0 AS seconds,
           extract(epoch FROM a.retry_at - a.started_at)::float8 - a.duration_ms / 1000.0 AS wait_s
    FROM delivery_attempts a JOIN deliveries d ON d.id = a.delivery_id JOIN endpoints p ON p.id = d.endpoint_id
    WHERE p.name = %(name)s AND a.number = 1 ORDER BY a.delivery_id
"""


@dataclass(frozen=True)
class Case:
    """One misbehaviour and what it must be called."""

    name: str
    script: dict[str, Any]
    outcome: str = "transient"
    classes: tuple[str, ...] = ("protocol",)
    listener: dict[str, Any] | None = None
    wait_s: tuple[float, float] | None = None
    """Bounds of the time until the next attempt."""
    says: str = ""
    events: int = 2
    scheme: str = "http"
    host: str = "127.0.0.1"


async def play_cases(trial: Trial, cases: Sequence[Case]) -> None:
    """Make an endpoint for each, send it some events, and look at what the first attempts are called."""
    for case in cases:
        port = trial.receiver.port
        if case.listener is not None:
            port = trial.receiver.listen(case.name, **case.listener)
        policy = RetryPolicy(max_attempts=3, schedule_s=SCHEDULE_S, cap_s=CAP_S)
        url = f"{case.scheme}://{case.host}:{port}/{case.name}"
        await trial.add(Destination(case.name, TENANTS[0], (f"odd.{case.name}",), url=url, policy=policy))
        # Once for each event that may succeed at its second attempt.
        times: dict[str, Any] = {"times": 1} if case.outcome == "transient" else {}
        trial.receiver.script(case.name, **case.script, **times)
    for case in cases:
        await trial.commit(TENANTS[0], f"odd.{case.name}", case.events)
        trial.faults += case.events
    trial.check(await trial.settled(90), "not settled")
    for case in cases:
        await check_case(trial, case)


async def check_case(trial: Trial, case: Case) -> None:
    """The first attempts of a case, against what was expected."""
    rows = await trial.rows(_FIRST, name=case.name)
    trial.check(bool(rows), f"{case.name}: no attempt")
    for row in rows:
        found = (row.outcome, row.failure_class or "")
        wanted = case.classes or ("",)
        trial.check(
            found[0] == case.outcome and found[1] in wanted,
            f"{case.name}: {found[0]} {found[1]} instead of {case.outcome} {' or '.join(wanted)}",
        )
        trial.check(row.seconds <= DEADLINE_S + 0.2, f"{case.name}: an attempt took {row.seconds:.2f} s")
        trial.check(case.says in (row.error or ""), f"{case.name}: the error does not say {case.says!r}: {row.error}")
        if case.wait_s is not None and row.wait_s is not None:
            low, high = case.wait_s
            trial.check(low <= row.wait_s <= high, f"{case.name}: waits {row.wait_s:.2f} s, not {low:g} to {high:g}")


def _raw(name: str, data: bytes, *, close: bool = True, **rest: Any) -> Case:
    return Case(name, {"play": "raw", "bytes": data.decode("latin-1"), "then_close": close}, **rest)


NONSENSE = (
    _raw("smtp", b"220 mail.example ESMTP ready\r\n"),
    _raw("status-999", b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n", close=False),
    _raw("http-0.9", b"<html>hello</html>\r\n"),
    _raw("status-101", b"HTTP/1.1 101 Switching\r\nupgrade: tea\r\nconnection: upgrade\r\n\r\n", close=False),
    Case(
        "bad-chunk",
        {
            "play": "raw",
            "bytes": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nnot a chunk\r\n",
            "code": 200,
        },
        "delivered",
        (),
    ),
    Case(
        "second-answer",
        {"play": "raw", "bytes": "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" * 2, "code": 200},
        "delivered",
        (),
    ),
    Case(
        "body-of-204",
        {
            "play": "raw",
            "bytes": "HTTP/1.1 204 No\r\n\r\nHTTP/1.1 500 Forged\r\ncontent-length: 0\r\n\r\n",
            "code": 204,
        },
        "delivered",
        (),
    ),
)


async def nonsense(trial: Trial) -> None:
    """What is not HTTP is classed as such, and its connection is never used again."""
    await play_cases(trial, NONSENSE)
    names = {case.name for case in NONSENSE}
    spoiled = {r.connection for r in trial.receiver.requests() if r.endpoint in names and _first_of_its_kind(trial, r)}
    again = [r for r in trial.receiver.requests() if r.connection in spoiled and r.on_connection > 1]
    again = [r for r in again if not _only_good_before(trial, r)]
    trial.check(not again, f"{len(again)} requests came over a connection that had answered nonsense")


def _first_of_its_kind(trial: Trial, request: Any) -> bool:
    return bool(request.attempt == 1)


def _only_good_before(trial: Trial, request: Any) -> bool:
    """Whether everything before it on its connection was answered well: second attempts are."""
    before = [
        r
        for r in trial.receiver.requests()
        if r.connection == request.connection and r.on_connection < request.on_connection
    ]
    return all(r.attempt > 1 for r in before)


BROKEN_OFF = (
    Case("rst-at-accept", {"play": "status"}, "transient", ("connect_reset", "closed_early"), {"at_accept": "reset"}),
    Case("rst-after-request", {"play": "reset"}, "transient", ("connect_reset",)),
    Case("rst-in-headers", {"play": "mid_headers", "reset": True}, "transient", ("connect_reset", "closed_early")),
    Case("fin-after-request", {"play": "fin"}, "transient", ("closed_early",)),
    Case("fin-in-headers", {"play": "mid_headers"}, "transient", ("closed_early", "protocol")),
    Case("half-open", {"play": "hang"}, "transient", ("timeout",)),
)


async def broken_off(trial: Trial) -> None:
    """Connections that end at every wrong moment."""
    await play_cases(trial, BROKEN_OFF)


def _to(name: str, code: int, location: str) -> Case:
    return Case(
        name,
        {"play": "status", "code": code, "headers": {"location": location}},
        "definite",
        ("http_status",),
        says="redirect",
    )


async def redirected(trial: Trial) -> None:
    """301, 302, 307 and 308 to places where a sender must not be led; nobody follows."""
    canary = trial.receiver.listen("canary")
    here = f"http://127.0.0.1:{trial.receiver.port}"
    cases = [
        _to("to-loopback", 301, f"http://127.0.0.1:{canary}/canary"),
        _to("to-metadata", 302, "http://169.254.169.254/latest/meta-data/"),
        _to("to-other-tenant", 307, f"{here}/of-another-tenant"),
        _to("to-self", 308, f"{here}/to-self"),
    ]
    await trial.add(Destination("of-another-tenant", TENANTS[1], ("never",)))
    await play_cases(trial, cases)
    names = {case.name for case in cases}
    requests = trial.receiver.requests()
    strays = [r for r in requests if r.endpoint not in names]
    trial.check(not strays, f"{len(strays)} redirects were followed")
    trial.check(len(requests) == sum(case.events for case in cases), f"{len(requests)} requests, one each was due")


def _busy(name: str, value: str, low: float, high: float) -> Case:
    return Case(
        name,
        {"play": "status", "code": 429, "headers": {"retry-after": value}},
        "transient",
        ("http_status",),
        wait_s=(low, high),
    )


async def says_no(trial: Trial) -> None:
    """410 disables; Retry-After is honoured up to the cap, and ignored where it is junk."""
    first = SCHEDULE_S[0]
    by_schedule = (first * 0.8 - 0.05, first * 1.2 + 1.0)
    in_2_s = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    cases = [
        _busy("seconds", "2", 1.95, 3.5),
        _busy("date", in_2_s, CAP_S - 0.7, CAP_S * 1.2 + 1),
        _busy("negative", "-5", *by_schedule),
        _busy("huge", "1000000000", CAP_S * 0.8 - 0.05, CAP_S + 1),
        _busy("junk", "soon; DROP TABLE", *by_schedule),
        Case("status-503", {"play": "status", "code": 503}, "transient", ("http_status",), wait_s=by_schedule),
        Case("status-404", {"play": "status", "code": 404}, "definite", ("http_status",)),
    ]
    await play_cases(trial, cases)
    await _gone(trial)


async def _gone(trial: Trial) -> None:
    trial.receiver.script("gone", "status", code=410)
    await trial.add(Destination("gone", TENANTS[1], ("gone",)))
    await trial.commit(TENANTS[1], "gone", 1)
    trial.faults += 1
    trial.check(bool(await trial.until(lambda: _is_disabled(trial))), "410 did not disable the endpoint")
    trial.may_miss.add("gone")
    trial.audit["endpoint.disabled"] = 1
    await trial.commit(TENANTS[1], "gone", 3)
    await trial.settled(20)
    await asyncio.sleep(0.5)
    calls = sum(request.endpoint == "gone" for request in trial.receiver.requests())
    trial.check(calls == 1, f"an endpoint that answered 410 was called {calls} times")


async def _is_disabled(trial: Trial) -> bool:
    rows = await trial.rows("SELECT 1 FROM endpoints WHERE name = 'gone' AND status = 'disabled'")
    return bool(rows)


_FAILED = (Expect("homing_attempts_total"),)

SCENARIOS = (
    Scenario("F27", "receiver speaks nonsense", nonsense, _FAILED, quiet=True),
    Scenario("F28", "receiver breaks off", broken_off, (Expect("homing_retries_total"),), quiet=True),
    Scenario("F29", "receiver redirects", redirected, (Expect("homing_dead_letters_total"),), quiet=True),
    Scenario("F30", "receiver says no", says_no, (Expect("homing_retries_total"),), quiet=True),
)
