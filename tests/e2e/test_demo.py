"""`homing demo` as a newcomer runs it, and proof that its judge can say no."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from app.embedded.placement import place
from app.embedded.process import seen_processes
from workers.demo.ledger import Facts, Ledger, Received, compare
from workers.demo.receiver import signature_ok

ROOT = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, "-m", "workers.cli.main", "demo"]
LIMIT_S = 170


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """Nothing configured but what is given; temporary files in a folder of the test's own, so that leftovers show."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOMING_")}
    return clean | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "COLUMNS": "120"} | settings


def start(*arguments: str, folder: Path, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(folder, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell hands an ignored SIGINT down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def read_until(child: subprocess.Popen[str], words: str) -> None:
    assert child.stderr is not None
    said = []
    for line in child.stderr:
        said.append(line)
        if words in line:
            return
    raise AssertionError("".join(said))


def demo(*arguments: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    child = start(*arguments, folder=folder, **settings)
    out, err = child.communicate(timeout=LIMIT_S)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def processes_of(folder: Path) -> list[str]:
    """Command lines of live processes that carry the folder's path in their command line or their environment."""
    mark = str(folder).encode()
    found = []
    for seen in seen_processes():
        surroundings = surroundings_of(seen.pid)
        if (mark in surroundings or str(folder) in seen.command) and seen.pid != os.getpid():
            found.append(seen.command)
    return found


def surroundings_of(pid: int) -> bytes:
    """A process's environment; nothing when it is another user's or gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def cluster_of(folder: Path) -> Path:
    """Where the PostgreSQL of the demo that runs has its data; as root that is not in its home."""
    (home,) = folder.iterdir()
    return place(home).cluster


def assert_proved(result: dict[str, float], transactions: int) -> None:
    assert list(result) == [field.name for field in fields(Ledger)]
    assert result["transactions"] == transactions
    assert result["lost"] == result["phantom"] == result["signatures_bad"] == 0
    assert result["delivered"] == result["deliveries"] > result["events"] > 0
    assert result["duplicates"] == result["duplicates_flagged"]
    assert result["rolled_back"] == transactions // 10
    assert result["retried"] > 0
    assert result["replayed"] == result["dead_lettered"] > 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # Short, and not below pytest's numbered folders: a path is part of some of the servers' arguments.
    folder = tmp_path / "t"
    folder.mkdir(mode=0o700)
    return folder


def test_it_proves_its_point_and_leaves_nothing_behind(folder: Path) -> None:
    child = start("--events", "200", "--json", folder=folder)
    read_until(child, "Four endpoints")
    cluster = cluster_of(folder)
    out, err = child.communicate(timeout=LIMIT_S)

    assert child.returncode == 0, err
    assert_proved(json.loads(out), 200)
    assert "was killed (SIGKILL)" in err
    assert list(folder.iterdir()) == []
    assert processes_of(folder) == []
    assert not cluster.exists()


def test_keep_keeps_the_home_and_the_logs_and_people_get_a_table(folder: Path) -> None:
    done = demo("--events", "50", "--keep", folder=folder)

    assert done.returncode == 0, done.stderr
    (home,) = folder.iterdir()
    assert f"kept: {home}" in done.stderr
    assert {log.name for log in (home / "logs").iterdir()} >= {
        *("poller.log", "worker-1.log", "worker-2.log", "worker-3.log", "receiver.log", "received.jsonl"),
    }
    assert (home / "secret_keys").stat().st_mode & 0o777 == 0o600
    assert "lost" in done.stdout
    assert "homing up" in done.stdout
    assert processes_of(folder) == []
    shown = subprocess.run(
        [sys.executable, "-m", "workers.cli.main", "deliveries", "list", "--json"],
        env=environment(folder, HOMING_HOME=str(home)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert {delivery["state"] for delivery in json.loads(shown.stdout)} == {"delivered"}, shown.stderr
    erase(home)


def erase(home: Path) -> None:
    from app.embedded import EmbeddedPostgres

    EmbeddedPostgres(home).erase()
    shutil.rmtree(home)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle_it_removes_everything(folder: Path, number: signal.Signals) -> None:
    child = start("--events", "5000", folder=folder)
    read_until(child, "was killed")
    cluster = cluster_of(folder)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)

    assert child.returncode == 128 + number, said
    assert "Traceback" not in said
    assert list(folder.iterdir()) == []
    assert processes_of(folder) == []
    assert not cluster.exists()


def test_a_process_that_dies_is_shown_with_its_last_words(folder: Path) -> None:
    child = start("--events", "5000", folder=folder)
    read_until(child, "was killed")
    (poller,) = [
        seen.pid
        for seen in seen_processes()
        if seen.command.endswith("workers.cli.main poller") and str(folder).encode() in surroundings_of(seen.pid)
    ]
    os.kill(poller, signal.SIGKILL)
    _, said = child.communicate(timeout=60)

    assert child.returncode == 1, said
    assert "poller ended unexpectedly" in said
    assert "poller.started" in said
    assert "Traceback" not in said
    assert list(folder.iterdir()) == []
    assert processes_of(folder) == []


def test_with_servers_given_it_uses_databases_of_its_own(folder: Path, database_url: str, redis_url: str) -> None:
    import redis

    before = databases(database_url)
    with redis.Redis.from_url(redis_url) as client:
        client.set("homing:deliver", "somebody else's")

        done = demo(
            "--events", "50", "--json", folder=folder, HOMING_DATABASE_URL=database_url, HOMING_REDIS_URL=redis_url
        )

        assert done.returncode == 0, done.stderr
        assert_proved(json.loads(done.stdout), 50)
        assert client.get("homing:deliver") == b"somebody else's"
        assert set(client.info("keyspace")) == {"db0"}
    assert databases(database_url) == before
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT count(*) FROM endpoints").fetchone()
    assert row == (0,)
    assert list(folder.iterdir()) == []


def test_a_role_that_may_not_make_databases_is_refused_clearly(folder: Path, database_url: str) -> None:
    role = f"homing_demo_test_{os.getpid()}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'plain'").format(sql.Identifier(role)))
        try:
            host = database_url.rpartition("@")[2]
            done = demo("--json", folder=folder, HOMING_DATABASE_URL=f"postgresql://{role}:plain@{host}")
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))

    assert done.returncode == 5
    assert "CREATEDB" in done.stderr
    assert done.stdout == ""
    assert list(folder.iterdir()) == []


def databases(database_url: str) -> set[str]:
    with psycopg.connect(database_url) as connection:
        return {row[0] for row in connection.execute("SELECT datname FROM pg_database")}


SABOTAGE = """
from sqlalchemy import text
from typer import run

from app.outbox import add_event
from workers.demo import command, producer

place = producer._place


async def sabotaged(connection, order_id):
    await place(connection, order_id)
    if order_id == 5:
        await connection.execute(text("DELETE FROM outbox_events WHERE request_id = 'order-5'"))
    if order_id == 6:
        await connection.run_sync(add_event, "order.shipped", {"order_id": 100007})


producer._place = sabotaged
run(command.demo)
"""


def test_the_whole_demo_fails_when_an_event_is_lost_or_made_up(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SABOTAGE, "--events", "20", "--json"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    result = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    assert result["lost"] == 3  # order.placed goes to three endpoints
    assert (
        result["phantom"] >= 2
    )  # order.shipped to two; requests that the kill cut off are sent again, and count again
    assert "3 committed but not delivered" in done.stderr
    assert list(folder.iterdir()) == []


# --- the judge ---------------------------------------------------------------------------------------------------------

FACTS = Facts(expected=frozenset({("healthy", 1), ("healthy", 2), ("slow", 1)}), events=2, dead_lettered=0, replayed=0)
GOOD = [
    Received("healthy", "a", 1, 1, True, 200),
    Received("healthy", "b", 1, 2, True, 200),
    Received("slow", "a", 1, 1, True, 200),
]


def judge(received: list[Received], facts: Facts = FACTS) -> Ledger:
    return compare(facts, received, transactions=3, rolled_back=1, seconds=1.0)


def test_the_judge_finds_no_fault_where_there_is_none() -> None:
    ledger = judge(GOOD)

    assert ledger.faults == []
    assert (ledger.deliveries, ledger.delivered, ledger.lost, ledger.retried) == (3, 3, 0, 0)


@pytest.mark.parametrize(
    ("received", "why"),
    [
        (GOOD[:2], "never arrived"),
        ([*GOOD[:2], replace(GOOD[2], status=503)], "answered 503 only"),
        ([*GOOD[:2], replace(GOOD[2], status=200, caller_waited=False)], "nobody heard the 200"),
        ([*GOOD[:2], replace(GOOD[2], order_id=2, webhook_id="b")], "another order in its place"),
    ],
)
def test_the_judge_finds_what_was_lost(received: list[Received], why: str) -> None:
    ledger = judge(received)

    assert ledger.lost == 1, why
    assert "1 committed but not delivered" in ledger.faults


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (Received("healthy", "c", 1, 7, True, 200), "rolled back"),
        (Received("healthy", "c", 1, 7, True, 500), "rolled back, and refused"),
        (Received("slow", "b", 1, 2, True, 200), "not subscribed"),
        (Received("healthy", "z", 1, 1, True, 200), "the same order under a second id"),
        (Received("healthy", "c", 1, None, True, 200), "no order at all"),
    ],
)
def test_the_judge_finds_phantoms(extra: Received, why: str) -> None:
    ledger = judge([*GOOD, extra])

    assert ledger.phantom == 1, why
    assert ledger.lost == 0
    assert len(ledger.faults) == 1


def test_the_judge_finds_a_duplicate_that_nobody_recorded() -> None:
    ledger = judge([*GOOD, replace(GOOD[0], attempt=2)])

    assert (ledger.duplicates, ledger.duplicates_flagged, ledger.retried) == (1, 0, 1)
    assert len(ledger.faults) == 1


def test_a_duplicate_after_an_unanswered_attempt_is_at_least_once_and_no_fault() -> None:
    facts = replace(FACTS, unanswered={("healthy", "a"): [1]})

    ledger = judge([*GOOD, replace(GOOD[0], attempt=2)], facts)

    assert (ledger.duplicates, ledger.duplicates_flagged, ledger.faults) == (1, 1, [])


def test_one_unanswered_attempt_excuses_one_duplicate_only() -> None:
    facts = replace(FACTS, unanswered={("healthy", "a"): [1], ("healthy", "b"): [1]})

    ledger = judge([*GOOD, replace(GOOD[0], attempt=2), replace(GOOD[0], attempt=3)], facts)

    assert (ledger.duplicates, ledger.duplicates_flagged) == (2, 1)
    assert len(ledger.faults) == 1


def test_an_unanswered_attempt_of_another_number_excuses_nothing() -> None:
    facts = replace(FACTS, unanswered={("healthy", "a"): [4]})

    assert judge([*GOOD, replace(GOOD[0], attempt=2)], facts).duplicates_flagged == 0


def test_a_retry_after_503_is_no_duplicate() -> None:
    ledger = judge([replace(GOOD[0], status=503), replace(GOOD[0], attempt=2), *GOOD[1:]])

    assert (ledger.duplicates, ledger.retried, ledger.faults) == (0, 1, [])


def test_the_judge_finds_bad_signatures() -> None:
    ledger = judge([replace(GOOD[0], signature_ok=False, status=401), *GOOD])

    assert ledger.signatures_bad == 1
    assert len(ledger.faults) == 1


# --- the receiver's own verification -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["standard", "hex"])
def test_the_receiver_accepts_what_is_signed_and_nothing_else(scheme: str) -> None:
    from app.signing import SigningKey, sign

    secret, other, now = bytes(range(32)), bytes(range(1, 33)), int(time.time())
    headers = sign(scheme, [SigningKey("k2", other), SigningKey("k1", secret)], "msg", now, b'{"a": 1}')

    assert signature_ok(scheme, secret, headers, b'{"a": 1}')
    assert signature_ok(scheme, other, headers, b'{"a": 1}')
    assert not signature_ok(scheme, secret, headers, b'{"a": 2}')
    assert not signature_ok(scheme, bytes(32), headers, b'{"a": 1}')
    assert not signature_ok(scheme, secret, {}, b'{"a": 1}')
    for off in (-400, 400):
        late = sign(scheme, [SigningKey("k1", secret)], "msg", now + off, b"{}")
        assert not signature_ok(scheme, secret, late, b"{}")
