"""What `homing up` does: servers, schema, the API, one poller and some workers, kept running until somebody stops them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from app.config import Settings
from app.embedded import RunningServers, ensure_servers, running_servers
from app.embedded.files import prepare_home
from app.embedded.ports import free_port, is_free
from app.migrate import migrate
from app.sealing import SecretKeys
from workers.cli.access import read_settings
from workers.cli.output import give, say
from workers.processes import Processes

#: Seconds between two looks at the children, and at the servers.
LOOK_EVERY_S = 0.25
SERVERS_EVERY_S = 5.0
#: Seconds before a child that died is started again, at first and at most; doubles in between.
RESTART_AFTER_S = (1.0, 30.0)
#: A child that has run this many seconds was started well: its next death is a first one again.
STEADY_AFTER_S = 60.0


@dataclass(slots=True)
class _Child:
    started: float
    pause_s: float = RESTART_AFTER_S[0]
    due: float | None = None
    """When it is started again; None while it runs."""


@dataclass
class Together:
    """One run of `homing up`.

    Args:
        workers: how many worker processes.
        show_logs: the processes write to this process's stderr and stdout instead of to files.
        as_json: print where things are as JSON.
    """

    workers: int
    show_logs: bool
    as_json: bool
    _api_port: int = 0
    _children: dict[str, _Child] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Start everything, keep it running until SIGTERM or SIGINT, stop it in order. A second signal hurries."""
        settings = read_settings()
        if settings.database_url is None or settings.redis_url is None:
            say(f"starting servers in {settings.home.resolve()} ...")
        servers = ensure_servers(settings)
        try:
            SecretKeys.load(settings, embedded=settings.database_url is None)  # makes the file that children read
            migrate(servers.database_url)
            log_dir = None
            if not self.show_logs:
                prepare_home(settings.home.resolve())
                log_dir = settings.home.resolve() / "logs"
                log_dir.mkdir(mode=0o700, exist_ok=True)
            # Two installations may run on one machine: the second one's API takes a port that is free.
            self._api_port = settings.api_port if settings.api_port and is_free(settings.api_port) else free_port()
            processes = Processes(self._environment(settings, servers), log_dir)
            try:
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, self._on_signal)
                for name in ("api", "poller", *(f"worker-{n}" for n in range(1, self.workers + 1))):
                    self._start(processes, name)
                self._announce(settings, servers, processes)
                servers = self._keep_running(settings, servers, processes)
                say("stopping ...")
            finally:
                processes.stop_all(settings.lease_s + 5)
        finally:
            servers.stop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._stop.set()

    def _start(self, processes: Processes, name: str) -> None:
        processes.start(name, name.partition("-")[0])
        child = self._children.setdefault(name, _Child(0.0))
        child.started, child.due = time.monotonic(), None

    def _keep_running(self, settings: Settings, servers: RunningServers, processes: Processes) -> RunningServers:
        servers_at = time.monotonic() + SERVERS_EVERY_S
        while not self._stop.wait(LOOK_EVERY_S):
            self._restart_dead(processes)
            if time.monotonic() >= servers_at:
                servers = self._mend_servers(settings, servers, processes)
                servers_at = time.monotonic() + SERVERS_EVERY_S
        return servers

    def _restart_dead(self, processes: Processes) -> None:
        for name, code in processes.exited().items():
            child, now = self._children[name], time.monotonic()
            if child.due is None:
                if now - child.started >= STEADY_AFTER_S:
                    child.pause_s = RESTART_AFTER_S[0]
                child.due = now + child.pause_s
                log = processes.log_file(name)
                say(f"{name} ended with {code}; again in {child.pause_s:g} s" + (f"; see {log}" if log else ""))
                child.pause_s = min(child.pause_s * 2, RESTART_AFTER_S[1])
            elif now >= child.due:
                self._start(processes, name)

    def _mend_servers(self, settings: Settings, servers: RunningServers, processes: Processes) -> RunningServers:
        """Start a server of ours that died; take the servers over when their owner has gone."""
        before = (servers.database_url, servers.redis_url)
        if servers.owned:
            for server in (servers.postgres, servers.valkey):
                if server is not None and not server.is_running():
                    say(f"{server.title} died; starting it again")
                    server.start()
        elif running_servers(settings) is None:
            say("the servers' owner has gone; starting them again")
            servers = ensure_servers(settings)
        if (servers.database_url, servers.redis_url) != before:  # they are on other ports now
            processes.env = self._environment(settings, servers)
            for name in processes.stop_all(settings.lease_s + 5):
                self._start(processes, name)
        return servers

    def _environment(self, settings: Settings, servers: RunningServers) -> dict[str, str]:
        """What the children need: URLs hold passwords, so they go here and never into arguments."""
        environment = dict(os.environ)
        environment["HOMING_DATABASE_URL"] = servers.database_url
        environment["HOMING_REDIS_URL"] = servers.redis_url
        environment["HOMING_API_PORT"] = str(self._api_port)
        if settings.database_url is None and settings.secret_keys is None and settings.secret_keys_file is None:
            environment["HOMING_SECRET_KEYS_FILE"] = str(settings.home.resolve() / "secret_keys")
        return environment

    def _announce(self, settings: Settings, servers: RunningServers, processes: Processes) -> None:
        where: dict[str, Any] = {
            "postgres": _address(servers.database_url),
            "redis": _address(servers.redis_url),
            "api": f"http://{settings.api_host}:{self._api_port}",
            "home": str(settings.home.resolve()),
            "logs": str(processes.log_dir) if processes.log_dir else None,
            "processes": processes.pids(),
        }
        give(where, as_json=self.as_json)
        sys.stdout.flush()
        say(
            "\nRunning. Ctrl-C stops everything. Try, in another terminal:\n"
            "  homing endpoints create --url https://example.com/hook\n"
            "  homing events publish --type invoice.paid --data '{\"amount\": 10}'\n"
            "  homing status\n"
            "  homing keys create --scope deliveries:read     (for the API)"
        )


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname or 'local'}" + (f":{parts.port}" if parts.port else "")
