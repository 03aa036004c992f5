"""F18 and F22: a full disk, and a commit whose answer is lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from app.embedded import EmbeddedPostgres
from app.errors import EmbeddedServerError
from workers.chaos.ledger import read
from workers.chaos.proxy import Proxy
from workers.chaos.scenario import Expect, Scenario
from workers.chaos.stage import Stage, build_template
from workers.chaos.toxics import CutAfter
from workers.chaos.trial import Trial

DISK_MIB = 320
_SMALL = {"max_wal_size": "48MB", "min_wal_size": "32MB"}


def can_mount(stage: Stage) -> str | None:
    """A small disk of its own is a tmpfs, which only root may mount, and not everywhere."""
    if os.geteuid() != 0:
        return "a small disk for PostgreSQL needs root, to mount a tmpfs"
    probe = stage.folder / "mount-probe"
    probe.mkdir(exist_ok=True)
    if _mount(probe, 1):
        _unmount(probe)
        return None
    return "a tmpfs cannot be mounted here"


def _mount(folder: Path, mib: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=755", "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)  # noqa: S603, S607


async def commit_without_answer(trial: Trial) -> None:
    """Of every few commits of poller and workers, the server does one and the line breaks before its answer."""
    url = urlsplit(trial.database_url)
    cuts: list[float] = []
    async with Proxy(url.hostname or "127.0.0.1", url.port or 5432) as proxy:
        user = url.netloc.rpartition("@")[0]
        through = url._replace(netloc=f"{user}@127.0.0.1:{proxy.port}").geturl()
        for child in trial.fleet.living():
            await trial.fleet.terminate(child)
        trial.fleet.environment["HOMING_DATABASE_URL"] = through
        await trial.fleet.ready(*(trial.fleet.start(kind) for kind in ("poller", "worker", "worker")))
        proxy.poison(lambda: CutAfter(b"COMMIT", 0.05, trial.random, cuts), stream="upstream")
        proxy.reset()
        producer = trial.produce(15)
        await asyncio.sleep(trial.times(8, 25))
        proxy.heal()
        proxy.reset()
        await trial.mark_under_way(may_repeat=True)
        await producer.stop()
        trial.faults = len(cuts)
        # What was in flight when a line broke may have to be sent again: only where its result was not recorded.
        trial.allowed_duplicates += len(cuts)
        await trial.settled(40)
        for child in trial.fleet.living():
            await trial.fleet.terminate(child)


@contextmanager
def small_disk(stage: Stage) -> Iterator[Stage]:
    """The same stage with a PostgreSQL of its own, whose data are on a small disk."""
    home = stage.folder / "small-disk"
    home.mkdir(mode=0o700)
    postgres = EmbeddedPostgres(home, extra_settings=_SMALL)
    try:
        postgres.start()
        postgres.stop()
        _move_to_small_disk(postgres.data_folder)
        postgres.start()
        elsewhere = replace(stage, admin_url=postgres.url, postgres=postgres)
        build_template(elsewhere)
        yield elsewhere
    finally:
        postgres.stop()
        _unmount(postgres.data_folder)
        postgres.erase()


def _move_to_small_disk(data: Path) -> None:
    owner = data.stat()
    before = data.rename(data.with_name("data.before"))
    data.mkdir(mode=0o700)
    if not _mount(data, DISK_MIB):
        raise EmbeddedServerError("the small disk could not be mounted")
    os.chown(data, owner.st_uid, owner.st_gid)
    data.chmod(0o700)
    subprocess.run(["cp", "-a", f"{before}/.", str(data)], check=True)  # noqa: S603, S607


async def disk_full(trial: Trial) -> None:
    """A ballast file takes what is left of PostgreSQL's disk, for a while."""
    postgres = trial.stage.postgres
    assert postgres is not None
    producer = trial.produce(20)
    await asyncio.sleep(2)
    ballast = postgres.data_folder / "ballast"
    _fill(ballast)
    trial.faults += 1
    try:
        for _ in range(trial.times(6, 20)):
            await asyncio.sleep(1)
            _fill(ballast)
    finally:
        ballast.unlink()
    trial.figures["server_stayed_up"] = await asyncio.to_thread(_answers, trial.database_url)
    if not trial.figures["server_stayed_up"]:
        await asyncio.to_thread(postgres.kill)
        await asyncio.to_thread(postgres.start)
    at = await trial.now()
    await trial.mark_under_way(may_repeat=True)
    before = await _recorded(trial)
    back = await trial.until(lambda: _more(trial, before), 10)
    waited = await trial.now() - at
    trial.figures["back_s"] = round(waited, 2)
    trial.check(bool(back) and waited <= 5, f"deliveries went on {waited:.1f} s after there was space, over 5 s")
    figures = await producer.stop()
    await trial.settled(40)
    failed = await trial.rows("SELECT count(*) AS n FROM orders WHERE payload ? 'n' AND payload ? 'text'")
    stored, accepted = failed[0].n, figures["committed"]
    trial.figures |= {"accepted": accepted, "stored": stored}
    trial.check(stored >= accepted, f"{accepted - stored} commits were accepted and not stored")


def _fill(ballast: Path) -> None:
    """Let the file grow by what is free, but for a few blocks."""
    free = os.statvfs(ballast.parent)
    room = (free.f_bavail - 4) * free.f_frsize
    if room > 0:
        size = ballast.stat().st_size if ballast.exists() else 0
        with ballast.open("ab") as file:
            os.posix_fallocate(file.fileno(), size, room)


def _answers(database_url: str) -> bool:
    for _ in range(20):
        try:
            return bool(read(database_url, "SELECT 1"))
        except psycopg.OperationalError:
            time.sleep(0.1)
    return False


async def _recorded(trial: Trial) -> int:
    return int((await trial.rows("SELECT count(*) AS n FROM deliveries WHERE state = 'delivered'"))[0].n)


async def _more(trial: Trial, than: int) -> bool:
    return await _recorded(trial) > than


SCENARIOS = (
    Scenario(
        "F18",
        "Postgres' disk full",
        disk_full,
        (Expect("homing_poller_failures_total"),),
        (can_mount,),
        elsewhere=small_disk,
    ),
    Scenario("F22", "commit done, answer lost", commit_without_answer, (Expect("homing_poller_failures_total"),)),
)
