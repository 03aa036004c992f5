"""F32: a name server that lies, fails, is slow, or says too much."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from workers.chaos.scenario import Expect, Scenario
from workers.chaos.scenarios.receivers_odd import Case, play_cases
from workers.chaos.stage import Stage
from workers.chaos.trial import Trial

#: On loopback, and nobody else's.
ADDRESS = "127.53.53.53"
ZONE = "chaos.test"
SLOW_S = 10.0
#: Runs the rest of its arguments where /etc/resolv.conf is another file; $0 is that file.
_WRAP = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'


def can_resolve(stage: Stage) -> str | None:
    """The system's resolver is led to another name server in a mount namespace, which only root may make."""
    if not importlib.util.find_spec("dnslib"):
        return "the package dnslib, which its name server is made of, is not installed"
    if os.geteuid() != 0:
        return "a name server on port 53 and another /etc/resolv.conf need root"
    probe = stage.folder / "resolv.conf"
    probe.write_text(f"nameserver {ADDRESS}\noptions timeout:1 attempts:2\n", encoding="ascii")
    probe.chmod(0o644)
    tried = subprocess.run([*_wrapper(probe), "true"], check=False, capture_output=True)  # noqa: S603
    return None if tried.returncode == 0 else "a mount namespace of its own cannot be made here"


def _wrapper(file: Path) -> list[str]:
    return ["unshare", "--mount", "--", "sh", "-c", _WRAP, str(file)]


class _Answers:
    """What the name server says, by the first label of the name."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self._lock = threading.Lock()

    def resolve(self, request: Any, handler: Any) -> Any:
        dnslib = importlib.import_module("dnslib")
        reply = request.reply()
        label = str(request.q.qname).partition(".")[0]
        with self._lock:
            self.asked[label] = number = self.asked.get(label, 0) + 1
        if label == "slow":
            time.sleep(SLOW_S)
        if label in ("nx", "fail"):
            reply.header.rcode = dnslib.RCODE.NXDOMAIN if label == "nx" else dnslib.RCODE.SERVFAIL
            return reply
        if request.q.qtype == dnslib.QTYPE.A:
            for address in _addresses(label, number):
                reply.add_answer(dnslib.RR(request.q.qname, dnslib.QTYPE.A, rdata=dnslib.A(address), ttl=0))
        return reply


def _addresses(label: str, number: int) -> list[str]:
    if label == "many":
        return [f"127.0.0.{n}" for n in range(1, 101)]
    if label == "mixed":
        return ["127.0.0.1", "10.99.99.99"]
    if label == "private":
        return ["10.99.99.99"]
    if label == "rebinding":
        return ["127.0.0.1"] if number == 1 else ["169.254.169.254"]
    return ["127.0.0.1"]


def _case(label: str, outcome: str, *classes: str, events: int = 2) -> Case:
    return Case(label, {"play": "status"}, outcome, classes, host=f"{label}.{ZONE}", events=events)


async def lies(trial: Trial) -> None:
    """Names that cannot be resolved are retried, names that lead inside are refused, none takes longer than allowed."""
    dnslib_server = importlib.import_module("dnslib.server")
    silent = dnslib_server.DNSLogger("-recv,-send,-request,-reply,-truncated,-error", prefix=False)
    answers = _Answers()
    with ExitStack() as end:
        for tcp in (False, True):
            server = dnslib_server.DNSServer(answers, address=ADDRESS, port=53, tcp=tcp, logger=silent)
            server.start_thread()
            end.callback(server.stop)
        for worker in trial.fleet.living("worker"):
            await trial.fleet.terminate(worker)
        wrapper = _wrapper(trial.stage.folder / "resolv.conf")
        await trial.fleet.ready(*(trial.fleet.start("worker", wrapper=wrapper) for _ in range(2)))
        cases = [
            _case("good", "delivered"),
            _case("nx", "transient", "dns"),
            _case("fail", "transient", "dns"),
            _case("slow", "transient", "dns", "timeout", "connect_timeout"),
            _case("many", "delivered"),
            _case("mixed", "definite", "blocked_address"),
            _case("private", "definite", "blocked_address"),
        ]
        await play_cases(trial, cases)
        await _rebind(trial)
        trial.figures["asked"] = answers.asked


async def _rebind(trial: Trial) -> None:
    """A name that leads outside the first time and inside ever after: what is dialled is judged each time."""
    case = _case("rebinding", "delivered", "blocked_address", "", events=6)
    await trial.add_case(case.name, f"http://{case.host}:{trial.receiver.port}/{case.name}", events=case.events)
    trial.check(await trial.settled(40), "not settled")
    rows = await trial.rows(
        "SELECT DISTINCT a.outcome, a.failure_class FROM delivery_attempts a JOIN deliveries d ON d.id = a.delivery_id "
        "JOIN endpoints p ON p.id = d.endpoint_id WHERE p.name = %(name)s",
        name=case.name,
    )
    found = {tuple(row) for row in rows}
    trial.check(
        found <= {("delivered", None), ("definite", "blocked_address")}, f"rebinding: {sorted(map(str, found))}"
    )


SCENARIOS = (
    Scenario("F32", "name server lies", lies, (Expect("homing_dead_letters_total"),), (can_resolve,), quiet=True),
)
