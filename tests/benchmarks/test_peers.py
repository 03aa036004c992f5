"""The peers' files: pinned by hash, naming no host, and a schema that applies. Nothing is installed, no network is used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psycopg
import pytest

from app.errors import InvalidInput
from tests.conftest import Servers
from workers.bench.peers import DIRECTORY, known, plan_of, version_of

NAMES = known()
NODE = [name for name in NAMES if plan_of(name).kind == "node"]
PYTHON = [name for name in NAMES if plan_of(name).kind == "python"]
HOST = re.compile(r"\w://[\w-]|--(?:extra-)?index-url|--find-links", re.IGNORECASE)


def files() -> list[Path]:
    return [path for path in sorted(DIRECTORY.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def test_all_four_are_there() -> None:
    assert NAMES == ["bullmq", "celery", "dramatiq", "procrastinate"]


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_is_whole_and_its_programs_exist(name: str) -> None:
    plan = plan_of(name)
    assert plan.concurrency > 0
    assert plan.concurrency_waiting >= plan.concurrency
    for command in (plan.relay, plan.worker):
        for part in command:
            part.format(concurrency=1, name="worker-1")
            if part.endswith((".py", ".js")):
                assert (DIRECTORY / name / part).is_file()
    assert re.fullmatch(r"\d+(\.\d+)+", version_of(name))


@pytest.mark.parametrize("name", PYTHON)
def test_a_python_lock_pins_every_package_by_hash_and_everything_asked_for(name: str) -> None:
    lock = (DIRECTORY / name / "requirements.lock").read_text(encoding="utf-8")
    entries = [entry for entry in re.split(r"\n(?=\S)", lock.strip()) if not entry.startswith("#")]
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+==\S+", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]
    for asked in (DIRECTORY / name / "requirements.txt").read_text(encoding="utf-8").splitlines():
        package = re.sub(r"\[.*\]", "", asked)
        assert re.search(rf"^{re.escape(package)}( |$)", lock, re.MULTILINE), f"{asked} is not what the lock has"


@pytest.mark.parametrize("name", NODE)
def test_a_node_lock_has_the_integrity_of_every_package_and_everything_asked_for(name: str) -> None:
    packages = json.loads((DIRECTORY / name / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    asked = json.loads((DIRECTORY / name / "package.json").read_text(encoding="utf-8"))["dependencies"]
    assert packages.pop("")["dependencies"] == asked
    for path, package in packages.items():
        assert package["integrity"].startswith("sha512-"), path
        assert "resolved" not in package, path
    for package, version in asked.items():
        assert packages[f"node_modules/{package}"]["version"] == version


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(DIRECTORY)))
def test_no_file_names_a_host(path: Path) -> None:
    found = HOST.search(path.read_text(encoding="utf-8"))
    assert found is None, f"{path.name} names {found.group()}"


def test_the_schema_applies_and_every_peer_writes_the_same_statements(servers: Servers) -> None:
    schema = (DIRECTORY / "schema.sql").read_text(encoding="utf-8")
    claim = re.search(r'CLAIM = """(.*?)"""', (DIRECTORY / "webhooks.py").read_text(encoding="utf-8"), re.DOTALL)
    node = re.search(r"CLAIM = `(.*?)`", (DIRECTORY / "bullmq" / "webhooks.js").read_text(encoding="utf-8"), re.DOTALL)
    assert claim is not None
    assert node is not None
    # psycopg reads a uuid faster as text; Node gets text anyway.
    assert node[1].split() == claim[1].replace("%s", "$1").replace("id::text, event_id::text,", "id, event_id,").split()
    with psycopg.connect(servers.running.database_url) as connection:
        connection.execute("CREATE SCHEMA peers")
        connection.execute("SET LOCAL search_path TO peers")
        connection.execute(schema.encode())
        connection.execute("INSERT INTO endpoints VALUES ('a', 'one', 's'), ('a', 'two', 's'), ('b', 'one', 's')")
        connection.execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}'), ('c', '{}')")
        claimed = connection.execute(claim[1].encode(), (10,)).fetchall()
        assert sorted(row[2:] for row in claimed) == [("one", "s", "{}"), ("two", "s", "{}")]
        assert connection.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
        connection.rollback()


def test_an_unknown_peer_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="peer 'sidekiq' is not one of bullmq, celery"):
        plan_of("sidekiq")


def test_without_a_checkout_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="needs a checkout"):
        known(tmp_path)
