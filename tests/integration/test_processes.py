"""Children of Homing, and `homing up`: real processes, started, killed, restarted and stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import psycopg
import pytest

from app.config import load_settings
from app.embedded import EmbeddedPostgres, running_servers
from app.embedded.process import see, wait_until
from tests.conftest import Servers
from tests.integration.command_line import CommandLine, command_line
from workers.processes import PARENT_PIPE, Processes

UP = [sys.executable, "-m", "workers.cli.main", "up", "--workers", "1", "--json"]


@pytest.fixture(scope="module")
def homing(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with command_line(servers, tmp_path_factory.mktemp("cli_processes")) as line:
        yield line


@pytest.fixture
def environment(homing: CommandLine) -> dict[str, str]:
    return os.environ | homing.environment | {"HOMING_METRICS_PORT": "0"}


def logged(file: Path | None, what: str) -> bool:
    return file is not None and file.exists() and what in file.read_text()


def test_children_are_started_killed_stopped_and_always_reaped(environment: dict[str, str], tmp_path: Path) -> None:
    with Processes(environment, tmp_path) as processes:
        killed = processes.start("first", "poller")
        processes.start("second", "poller")
        assert set(processes.pids()) == {"first", "second"}
        with pytest.raises(ValueError, match="runs already"):
            processes.start("first", "poller")
        assert processes.kill("first") == -signal.SIGKILL
        assert see(killed.pid) is None
        assert processes.exited() == {"first": -signal.SIGKILL}
        second = processes.log_file("second")
        assert wait_until(lambda: logged(second, "poller.started"), 30)
        assert processes.stop_all(30) == {"first": -signal.SIGKILL, "second": 0}
        assert logged(second, "poller.stopped")
        processes.start("first", "--version")
        assert processes.wait("first", 30) == 0
        last = processes.start("last", "poller")
    assert see(last.pid) is None


def test_a_child_stops_when_its_parent_is_gone(environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "workers.cli.main", "worker"]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment | {PARENT_PIPE: "1"}
        ) as child,
    ):
        assert wait_until(lambda: logged(log, "worker.started"), 30)
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(30) == 0
    assert logged(log, "worker.stopped")


@contextmanager
def up(environment: dict[str, str], errors: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    with (
        errors.open("w") as stderr,
        subprocess.Popen(UP, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as parent,
    ):
        try:
            assert parent.stdout is not None
            yield parent, json.loads(parent.stdout.readline())
        finally:
            parent.terminate()


def test_up_starts_everything_restarts_what_dies_and_stops_in_order(tmp_path: Path) -> None:
    home, errors = tmp_path / "home", tmp_path / "errors"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOMING_")}
    try:
        with up(clean | {"HOMING_HOME": str(home), "HOMING_METRICS_PORT": "0"}, errors) as (parent, where):
            pids = where["processes"]
            assert isinstance(pids, dict)
            assert set(pids) == {"api", "poller", "worker-1"}
            assert wait_until(lambda: _answers(f"{where['api']}/readyz"), 30)
            settings = load_settings(home=home)
            servers = running_servers(settings)
            assert servers is not None
            for secret in (servers.database_url, servers.redis_url):
                password = re.split("[:@]", secret.partition("://")[2])[1]
                assert password not in json.dumps(where) + errors.read_text()
                assert all(password not in seen.command for pid in pids.values() if (seen := see(pid)))
            with psycopg.connect(servers.database_url) as connection:
                assert connection.execute("SELECT count(*) FROM outbox_events").fetchone() == (0,)
            assert (home / "secret_keys").stat().st_mode & 0o777 == 0o600
            os.kill(pids["worker-1"], signal.SIGKILL)
            log = home / "logs" / "worker-1.log"
            assert wait_until(lambda: logged(errors, "worker-1 ended with -9"), 30)
            assert wait_until(lambda: logged(log, "worker.started") and _last_pid(log) != pids["worker-1"], 30)
            parent.send_signal(signal.SIGINT)
            assert parent.wait(60) == 0
        assert see(pids["poller"]) is None
        assert see(_last_pid(log)) is None
        assert running_servers(settings) is None
        assert "homing endpoints create" in errors.read_text()
    finally:
        EmbeddedPostgres(home).erase()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _last_pid(log: Path) -> int:
    """Pid in the last `worker.started` line."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if "worker.started" in line]
    return int(lines[-1]["name"].rpartition(":")[2])
