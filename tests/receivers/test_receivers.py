"""The samples of docs/receivers.md as real processes, with genuine deliveries and with hostile ones."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from app.verifier import PostgresMemory
from tests.conftest import Servers
from tests.receivers.serving import HERE, NEW, OLD, STRANGE, Sample, node_folder, python, python_folder, signed, started

SAMPLES = {"fastapi": "fastapi_receiver.py", "flask": "flask_receiver.py", "express": "express_receiver.js"}


@pytest.fixture(scope="module", params=SAMPLES)
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        if request.param == "express":
            environment = {"PORT": "0", "NODE_ENV": "production"}
            yield stack.enter_context(with_ledger(["node", "express_receiver.js"], node_folder(folder), environment))
            return
        servers: Servers = request.getfixturevalue("servers")
        python_folder(folder, SAMPLES[request.param])
        if request.param == "flask":
            command = python("flask", "--app", "flask_receiver", "run", "--port", "0")
            yield stack.enter_context(with_ledger(command, folder, {"REDIS_URL": servers.running.redis_url}))
        else:
            yield stack.enter_context(with_payments(folder, servers))


@contextmanager
def with_ledger(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[Sample]:
    """A sample whose work is a line in a file."""
    ledger = folder / "ledger.txt"

    def effects() -> list[str]:
        return ledger.read_text("utf-8").split() if ledger.exists() else []

    @contextmanager
    def broken_work() -> Iterator[None]:
        kept = effects()
        ledger.unlink(missing_ok=True)
        ledger.mkdir()
        yield
        ledger.rmdir()
        ledger.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    @contextmanager
    def slow_work() -> Iterator[None]:
        kept = effects()
        ledger.unlink(missing_ok=True)
        os.mkfifo(ledger)  # whoever opens it for writing waits for a reader
        yield
        written = ledger.read_text("utf-8")
        ledger.unlink()
        ledger.write_text("".join(f"{line}\n" for line in kept) + written, "utf-8")

    with started(command, folder, environment | {"LEDGER": str(ledger)}) as (url, output):
        yield Sample(url, effects, broken_work, slow_work, output)


@contextmanager
def with_payments(folder: Path, servers: Servers) -> Iterator[Sample]:
    """The sample whose work is a row in a table."""
    name = f"receiver_{os.getpid()}"
    url = servers.url_of(name)
    with psycopg.connect(servers.running.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")

    def run(statement: str) -> list[Any]:
        with psycopg.connect(url) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    run(re.search(r"CREATE TABLE.*\(seen_at\);", str(PostgresMemory.__doc__), re.DOTALL)[0])  # type: ignore[index]
    run("CREATE TABLE payments (id bigint GENERATED ALWAYS AS IDENTITY, invoice text NOT NULL)")

    @contextmanager
    def broken_work() -> Iterator[None]:
        run("ALTER TABLE payments RENAME TO elsewhere")
        yield
        run("ALTER TABLE elsewhere RENAME TO payments")

    @contextmanager
    def slow_work() -> Iterator[Callable[[], None]]:
        with psycopg.connect(url) as connection:
            connection.execute("LOCK TABLE payments IN SHARE MODE")

            def both_wait() -> None:
                while run("SELECT count(*) FROM pg_locks WHERE NOT granted") != [(2,)]:
                    pass

            yield both_wait

    def effects() -> list[str]:
        return [row[0] for row in run("SELECT invoice FROM payments ORDER BY id")]

    command = python("uvicorn", "fastapi_receiver:app", "--host", "127.0.0.1", "--port", "0")
    with started(command, folder, {"DATABASE_URL": url}) as (address, output):
        yield Sample(address, effects, broken_work, slow_work, output)
    with psycopg.connect(servers.running.database_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def invoice() -> str:
    return uuid4().hex


def test_genuine_delivery_is_worked_on_once_however_often_it_comes(sample: Sample, invoice: str) -> None:
    event_id = str(uuid4())
    assert [sample.deliver(invoice, event_id=event_id) for _ in range(3)] == [204] * 3
    assert sample.effects().count(invoice) == 1


@pytest.mark.parametrize("keys", [[NEW], [OLD], [STRANGE, OLD], [NEW, OLD]], ids=["new", "old", "one-of-two", "both"])
def test_either_secret_is_accepted_while_it_is_rotated(sample: Sample, invoice: str, keys: list[Any]) -> None:
    assert sample.deliver(invoice, *keys) == 204
    assert sample.effects().count(invoice) == 1


@pytest.mark.parametrize(
    "body",
    [
        '{ "invoice" :\t"%s",\r\n "name": "Zoë 東京 🙂", "total": 10.10, "big": 12345678901234567890 }\n',
        '{"z": 1, "a": {"z": 1, "a": 2}, "invoice": "%s", "escaped": "\\u00e9\\/"}',
        '{"invoice": "%s", "long": "' + "é" * 510_000 + '"}',
    ],
    ids=["spaces-and-unicode", "order-and-escapes", "one-mebibyte"],
)
def test_bytes_are_verified_as_they_arrived(sample: Sample, invoice: str, body: str) -> None:
    raw = (body % invoice).encode()
    assert sample.post(signed(raw), raw).status_code == 204
    assert sample.effects().count(invoice) == 1


def hostile(body: bytes) -> dict[str, tuple[Any, bytes]]:
    """Requests that are not genuine, or not of now."""
    good = signed(body)
    pairs = list(good.items())
    signature = good["webhook-signature"]
    return {
        "changed body": (good, body.replace(b'"}', b'0"}')),
        "body written again": (good, json.dumps(json.loads(body), separators=(",", ":")).encode()),
        "no body": (good, b""),
        "body that is not JSON": (good, b"\xff\x00"),
        "old": (signed(body, age_s=301), body),
        "of the future": (signed(body, age_s=-360), body),
        "strange key": (signed(body, STRANGE), body),
        "another id": (good | {"webhook-id": str(uuid4())}, body),
        "another timestamp": (good | {"webhook-timestamp": str(int(good["webhook-timestamp"]) - 1)}, body),
        "timestamp that is no number": (good | {"webhook-timestamp": "soon"}, body),
        "signature without version": (good | {"webhook-signature": signature[3:]}, body),
        "signature cut short": (good | {"webhook-signature": signature[:-1]}, body),
        "signature of nothing": (good | {"webhook-signature": "v1,"}, body),
        "long signature": (good | {"webhook-signature": "v1," + "A" * 6000}, body),
        "id twice": ([*pairs, ("webhook-id", str(uuid4()))], body),
        "timestamp twice": ([*pairs, ("webhook-timestamp", "1")], body),
        "no headers": ({}, body),
        "scheme hex": ({f"x-{name}": value for name, value in pairs}, body),
    }


@pytest.mark.parametrize("kind", hostile(b'{"invoice": ""}'))
def test_hostile_request_is_refused_and_nothing_happens(sample: Sample, invoice: str, kind: str) -> None:
    before = sample.effects()
    headers, body = hostile(f'{{"invoice": "{invoice}"}}'.encode())[kind]
    assert sample.post(headers, body).status_code == 401
    assert sample.effects() == before


def test_forged_request_does_not_use_up_the_id_of_the_genuine_one(sample: Sample, invoice: str) -> None:
    event_id = str(uuid4())
    assert sample.deliver("forged", STRANGE, event_id=event_id) == 401
    assert sample.deliver(invoice, event_id=event_id) == 204
    assert sample.effects().count(invoice) == 1


def test_work_that_failed_is_done_when_the_event_comes_again(sample: Sample, invoice: str) -> None:
    event_id = str(uuid4())
    with sample.broken_work():
        assert sample.deliver(invoice, event_id=event_id) == 500
    while (status := sample.deliver(invoice, event_id=event_id)) == 503:
        pass  # RedisMemory frees the id a second later
    assert status == 204
    assert sample.deliver(invoice, event_id=event_id) == 204
    assert sample.effects().count(invoice) == 1


def test_of_two_copies_at_once_one_is_worked_on_and_the_other_waits_or_comes_again(
    sample: Sample, invoice: str
) -> None:
    event_id = str(uuid4())
    with ThreadPoolExecutor(2) as pool:
        with sample.slow_work() as both_wait:
            copies = [pool.submit(sample.deliver, invoice, event_id=event_id) for _ in range(2)]
            if both_wait:  # the memory in Postgres
                both_wait()
                told = [copy.result() for copy in copies if copy.done()]
            else:
                told = [copy.result() for copy in wait(copies, timeout=60, return_when=FIRST_COMPLETED).done]
        statuses = sorted(copy.result() for copy in copies)
    assert (told, statuses) in (([], [204, 204]), ([503], [204, 503]))
    assert sample.deliver(invoice, event_id=event_id) == 204
    assert sample.effects().count(invoice) == 1


def test_samples_print_no_secret_and_nothing_that_a_refused_request_said(sample: Sample) -> None:
    body = b'{"invoice": "canary-in-a-refused-body"}'
    assert sample.post(signed(body, STRANGE, event_id="canary-id"), body).status_code == 401
    said = "".join(sample.output)
    assert "canary" not in said
    assert "whsec_" not in said


@pytest.mark.parametrize("name", [*SAMPLES.values(), "package-lock.json"])
def test_samples_name_no_host_to_download_from(name: str) -> None:
    text = (HERE / name).read_text("utf-8")
    assert not re.search(r"https?://(?!127\.0\.0\.1)", text)


def test_every_package_of_the_express_sample_is_pinned_by_hash() -> None:
    packages = json.loads((HERE / "package-lock.json").read_text("utf-8"))["packages"]
    assert packages.pop("")["dependencies"].keys() == {"express"}
    assert len(packages) > 10
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not any("resolved" in package for package in packages.values())
