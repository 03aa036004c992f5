"""F31: receivers whose TLS is wrong in every usual way, and one whose is right."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path

from workers.chaos.scenario import Expect, Scenario
from workers.chaos.scenarios.receivers_odd import Case, play_cases
from workers.chaos.stage import Stage
from workers.chaos.trial import Trial

HOST = "127.0.0.1"
#: Certificates in the longest chain: some hundred kilobytes, several times what OpenSSL takes by default.
LONG_CHAIN = 700


def has_trustme(stage: Stage) -> str | None:
    """Certificates for the scenario come from a development dependency."""
    found = importlib.util.find_spec("trustme")
    return None if found else "the package trustme, which makes its certificates, is not installed"


async def wrong_tls(trial: Trial) -> None:
    """Certificates that must not be trusted, protocols that are too old, and a handshake that never ends."""
    import trustme

    folder = trial.stage.folder / "certificates"
    folder.mkdir(mode=0o700)
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    past = datetime.now(UTC) - timedelta(days=2)
    good = _file(folder / "good.pem", authority.issue_cert(HOST))
    expired = authority.issue_cert(HOST, not_before=past - timedelta(days=9), not_after=past)
    chain = authority.issue_cert(HOST)
    long = folder / "long.pem"
    leaf = chain.cert_chain_pems[0].bytes()
    long.write_bytes(chain.private_key_and_cert_chain_pem.bytes() + leaf * LONG_CHAIN)
    tls = ("tls",)
    cases = [
        _case("expired", _file(folder / "expired.pem", expired), "definite", tls),
        _case("wrong-host", _file(folder / "host.pem", authority.issue_cert("example.org")), "definite", tls),
        _case("self-signed", _file(folder / "stranger.pem", stranger.issue_cert(HOST)), "definite", tls),
        Case("tls-1.0", {"play": "status"}, "definite", tls, {"at_accept": "tls_alert"}, scheme="https"),
        _case("long-chain", long, "definite", tls),
        _case("right", good, "delivered", ()),
        Case(
            "hangs",
            {"play": "status"},
            "transient",
            ("connect_timeout", "timeout"),
            {"at_accept": "hang"},
            scheme="https",
        ),
    ]
    for worker in trial.fleet.living("worker"):
        await trial.fleet.terminate(worker)
    trial.fleet.environment["SSL_CERT_FILE"] = str(folder / "authority.pem")
    await trial.fleet.ready(trial.fleet.start("worker"), trial.fleet.start("worker"))
    await play_cases(trial, cases)
    strangers = [r for r in trial.receiver.requests() if r.endpoint != "right"]
    trial.check(not strangers, f"{len(strangers)} requests were sent over TLS that must not be trusted")


def _case(name: str, certificate: Path, outcome: str, classes: tuple[str, ...]) -> Case:
    return Case(
        name,
        {"play": "status"},
        outcome,
        classes,
        {"certificate": str(certificate)},
        scheme="https",
    )


def _file(path: Path, certificate: object) -> Path:
    pem: bytes = certificate.private_key_and_cert_chain_pem.bytes()  # type: ignore[attr-defined]
    path.write_bytes(pem)
    return path


SCENARIOS = (
    Scenario(
        "F31", "receiver's TLS is wrong", wrong_tls, (Expect("homing_dead_letters_total"),), (has_trustme,), quiet=True
    ),
)
