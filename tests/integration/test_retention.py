"""`homing retention` drops whole old weeks that nothing needs, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.conftest import Servers
from tests.integration.command_line import CommandLine
from tests.old_weeks import OldWeeks

DO = ("--execute", "--yes")


@pytest.fixture
def homing(servers: Servers, database_url: str, tmp_path: Path) -> CommandLine:
    environment = {
        "HOMING_HOME": str(tmp_path / "home"),
        "HOMING_DATABASE_URL": database_url,
        "HOMING_REDIS_URL": servers.running.redis_url,
        "HOMING_SECRET_KEYS": b64encode(os.urandom(32)).decode(),
    }
    return CommandLine(database_url, environment)


@pytest.fixture
def weeks(database_url: str) -> OldWeeks:
    return OldWeeks(database_url)


def fates(answer: Any) -> dict[str, str]:
    return {week["week"].replace("-", ""): week["fate"] for week in answer["weeks"]}


def test_weeks_older_than_the_kept_age_go_and_younger_ones_stay(homing: CommandLine, weeks: OldWeeks) -> None:
    old, older, young = weeks.make(8), weeks.make(20), weeks.make(2)
    for n in (8, 20, 2):
        weeks.fill(n)
    this_week_and_ahead = weeks.partitions() - {old, older, young}
    answer = homing.ok("retention", "--keep", "30", *DO)
    assert fates(answer) == {old: "dropped", older: "dropped"}
    assert weeks.partitions() == this_week_and_ahead | {young}
    for table in ("events", "deliveries", "delivery_attempts"):
        assert weeks.sql(f"SELECT count(*) FROM {table}") == [{"count": 3}], "what is younger stays readable"


def test_a_dry_run_changes_nothing_and_tells_what_would_go(homing: CommandLine, weeks: OldWeeks) -> None:
    name = weeks.make(8)
    weeks.fill(8)
    before = weeks.partitions()
    assert fates(homing.ok("retention", "--keep", "30")) == {name: "may go"}
    assert homing("retention", "--keep", "30", "--dry-run").code == 0
    assert weeks.partitions() == before
    assert weeks.sql("SELECT count(*) FROM deliveries") == [{"count": 3}]
    assert weeks.sql("SELECT count(*) FROM audit_events WHERE action = 'retention.dropped'") == [{"count": 0}]


def test_partitions_that_are_made_ahead_afterwards_are_not_the_dropped_ones(
    homing: CommandLine, weeks: OldWeeks
) -> None:
    name = weeks.make(8)
    homing.ok("retention", "--keep", "30", *DO)
    weeks.sql("SELECT homing_ensure_partitions(4)")
    assert name not in weeks.partitions()


@pytest.mark.parametrize("state", ["pending", "delivering", "retry_scheduled", "failed", "replayed"])
def test_a_week_with_an_unfinished_delivery_is_kept_and_says_so(
    homing: CommandLine, weeks: OldWeeks, state: str
) -> None:
    name = weeks.make(8)
    weeks.fill(8)
    weeks.delivery(8, state)
    answer = homing.ok("retention", "--keep", "30", *DO)
    assert fates(answer) == {name: "kept"}
    assert answer["weeks"][0]["needs"] == {"unfinished_deliveries": 1}
    assert weeks.sql("SELECT count(*) FROM deliveries") == [{"count": 4}]


def test_a_week_with_an_open_dead_letter_is_kept_until_that_was_delivered(homing: CommandLine, weeks: OldWeeks) -> None:
    name = weeks.make(8)
    delivery = weeks.delivery(8, "dead_lettered")
    answer = homing.ok("retention", "--keep", "30", *DO)
    assert answer["weeks"][0]["needs"] == {"open_dead_letters": 1}
    weeks.sql(
        "UPDATE deliveries SET state = 'delivered', delivered_at = now(), failed_at = NULL WHERE id = %(id)s",
        id=delivery,
    )
    weeks.sql("UPDATE dead_letters SET status = 'resolved'")
    answer = homing.ok("retention", "--keep", "30", *DO)
    assert fates(answer) == {name: "dropped"}
    assert answer["removed"]["dead_letters"] == 1, "its letter holds the payload"
    assert weeks.sql("SELECT count(*) FROM dead_letters") == [{"count": 0}]


def test_a_week_with_an_open_replay_item_is_kept(homing: CommandLine, weeks: OldWeeks) -> None:
    weeks.make(8)
    delivery = weeks.delivery(8, "dead_lettered", request_id="wanted")
    homing.ok("replay", "--request-id", "wanted", "--reason", "test")
    weeks.sql("UPDATE dead_letters SET status = 'replayed'")
    weeks.sql(
        "UPDATE deliveries SET state = 'delivered', delivered_at = now(), failed_at = NULL WHERE id = %(id)s",
        id=delivery,
    )
    answer = homing.ok("retention", "--keep", "30", *DO)
    assert answer["weeks"][0]["needs"] == {"open_replay_items": 1}


def test_a_week_whose_events_another_weeks_deliveries_need_is_kept(homing: CommandLine, weeks: OldWeeks) -> None:
    old, young = weeks.make(8), weeks.make(1)
    weeks.fill(8)
    late = weeks.delivery(1, "retry_scheduled", event_weeks_ago=8)
    answer = homing.ok("retention", "--keep", "30", *DO)
    assert answer["weeks"][0]["needs"] == {"needed_by_other_weeks": 1}
    weeks.sql(
        "UPDATE deliveries SET state = 'delivered', due_at = NULL, delivered_at = now() WHERE id = %(id)s", id=late
    )
    assert fates(homing.ok("retention", "--keep", "30", *DO)) == {old: "dropped"}
    assert young in weeks.partitions()


def test_a_week_from_which_a_row_waits_in_the_outbox_is_kept(homing: CommandLine, weeks: OldWeeks) -> None:
    weeks.make(8)
    weeks.sql(
        "INSERT INTO outbox_events (id, event_type, payload) VALUES (%(id)s, 'invoice.paid', '{}')", id=weeks.id_in(8)
    )
    answer = homing.ok("retention", "--keep", "30", *DO)
    assert answer["weeks"][0]["needs"] == {"waiting_in_outbox": 1}


def test_an_id_of_a_dropped_week_is_taken_and_delivered_like_any_other(homing: CommandLine, weeks: OldWeeks) -> None:
    weeks.make(8)
    late = weeks.id_in(8)
    homing.ok("retention", "--keep", "30", *DO)
    weeks.sql(
        """
        INSERT INTO events (id, tenant_id, event_type, body, request_id, created_at)
        VALUES (%(id)s, 'default', 'invoice.paid', '{}', 'late', now())
        """,
        id=late,
    )
    assert weeks.sql("SELECT tableoid::regclass::text AS place FROM events") == [{"place": "events_default"}]


def test_a_replay_asked_for_at_the_same_moment_keeps_the_week(homing: CommandLine, weeks: OldWeeks) -> None:
    """The replay has read its delivery and not committed: retention waits for it and then sees it."""
    name = weeks.make(8)
    delivery = weeks.delivery(8, "delivered")
    with psycopg.connect(weeks.database_url) as connection, ThreadPoolExecutor(1) as pool:
        connection.execute("SELECT state FROM deliveries WHERE id = %s", [delivery])
        run = pool.submit(homing.ok, "retention", "--keep", "30", *DO)
        _until_somebody_waits_or_ends(weeks, run)
        connection.execute(
            """
            WITH r AS (INSERT INTO replays (tenant_id, request_id, reason, actor, body_digest)
                       VALUES ('default', 'old', 'r', 'a', '') RETURNING id)
            INSERT INTO replay_items (replay_id, delivery_id) SELECT id, %s FROM r
            """,
            [delivery],
        )
        assert not run.done()
        connection.commit()
        answer = run.result(timeout=30)
    assert fates(answer) == {name: "kept"}
    assert answer["weeks"][0]["needs"] == {"open_replay_items": 1}


def test_a_week_in_use_is_left_and_its_user_named_with_exit_code_6(homing: CommandLine, weeks: OldWeeks) -> None:
    name, free = weeks.make(8), weeks.make(9)
    weeks.fill(8)
    with psycopg.connect(weeks.database_url, application_name="a-report") as connection:
        connection.execute(f"SELECT count(*) FROM deliveries_{name}")
        answer = homing("retention", "--keep", "30", *DO, "--patience", "1", "--json")
    assert answer.code == 6
    assert fates(answer.json) == {free: "dropped", name: "in use"}
    assert "a-report" in answer.json["weeks"][1]["why"]
    assert fates(homing.ok("retention", "--keep", "30", *DO)) == {name: "dropped"}


def test_the_default_partition_in_use_is_noticed_before_anything_waits_for_it(
    homing: CommandLine, weeks: OldWeeks
) -> None:
    """DROP of a partition locks the parent's default one; asking for it beforehand keeps that inside the short wait."""
    name = weeks.make(8)
    with psycopg.connect(weeks.database_url, application_name="a-report") as connection:
        connection.execute("SELECT count(*) FROM ONLY deliveries_default")
        answer = homing("retention", "--keep", "30", *DO, "--patience", "0", "--json")
    assert answer.code == 6
    assert fates(answer.json) == {name: "in use"}
    assert "a-report" in answer.json["weeks"][0]["why"]


def test_killed_between_two_weeks_the_next_run_completes_it(homing: CommandLine, weeks: OldWeeks) -> None:
    first, second = weeks.make(9), weeks.make(8)
    weeks.fill(9)
    weeks.fill(8)
    command = [sys.executable, "-m", "workers.cli.main", "retention", "--keep", "30", *DO]
    with psycopg.connect(weeks.database_url) as connection:
        connection.execute(f"SELECT FROM deliveries_{second}")
        process = subprocess.Popen(command, env=os.environ | homing.environment, stderr=subprocess.DEVNULL)
        _until(lambda: first not in weeks.partitions(), "the first week is dropped")
        process.kill()
        process.wait()
    assert weeks.partitions() >= {second}
    assert weeks.sql("SELECT count(*) FROM deliveries") == [{"count": 3}]
    assert fates(homing.ok("retention", "--keep", "30", *DO)) == {second: "dropped"}


def test_interrupted_it_says_that_the_same_command_goes_on(homing: CommandLine, weeks: OldWeeks) -> None:
    first, second = weeks.make(9), weeks.make(8)
    command = [sys.executable, "-m", "workers.cli.main", "retention", "--keep", "30", *DO]
    with psycopg.connect(weeks.database_url) as connection:
        connection.execute(f"SELECT FROM deliveries_{second}")
        process = subprocess.Popen(
            command, env=os.environ | homing.environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
        )
        _until(lambda: first not in weeks.partitions(), "the first week is dropped")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on with the rest" in said
    assert "Traceback" not in said


def test_two_at_once_one_is_refused_and_the_other_completes(homing: CommandLine, weeks: OldWeeks) -> None:
    name = weeks.make(8)
    with psycopg.connect(weeks.database_url) as connection, ThreadPoolExecutor(1) as pool:
        connection.execute(f"SELECT FROM deliveries_{name}")
        command = [sys.executable, "-m", "workers.cli.main", "retention", "--keep", "30", *DO]
        run = pool.submit(subprocess.run, command, env=os.environ | homing.environment, capture_output=True)
        _until(lambda: _retention_lock_is_held(weeks), "one is under way")
        second = homing("retention", "--keep", "30", *DO, "--json")
        connection.rollback()
        assert run.result(timeout=30).returncode == 0
    assert second.code == 5
    assert "another" in second.error["message"]
    assert name not in weeks.partitions()


def test_a_role_that_does_not_own_the_tables_drops_nothing_and_exits_with_4(
    homing: CommandLine, weeks: OldWeeks
) -> None:
    weeks.make(8)
    before, role = weeks.partitions(), f"app_{uuid4().hex[:8]}"
    weeks.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    weeks.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        host = weeks.database_url.rpartition("@")[2]
        url = f"postgresql://{role}:x@{host}"
        assert homing("retention", "--keep", "30", HOMING_DATABASE_URL=url).code == 0, "it may look"
        answer = homing("retention", "--keep", "30", *DO, "--json", HOMING_DATABASE_URL=url)
    finally:
        weeks.sql(f"DROP OWNED BY {role}")
        weeks.sql(f"DROP ROLE {role}")
    assert answer.code == 4
    assert weeks.partitions() == before


def test_each_dropped_week_is_audited_with_who_and_what(homing: CommandLine, weeks: OldWeeks) -> None:
    name = weeks.make(8)
    homing.ok("retention", "--keep", "30", *DO)
    (row,) = homing.ok("audit", "list", "--tenant", "*")
    assert row["action"] == "retention.dropped"
    assert row["subject"].replace("-", "") == name
    assert row["actor"].startswith("cli:")
    assert sorted(row["before"]["partitions"]) == [
        f"{parent}_{name}" for parent in ("deliveries", "delivery_attempts", "events")
    ]


def test_idempotency_keys_are_kept_unless_they_are_to_be_forgotten(homing: CommandLine, weeks: OldWeeks) -> None:
    weeks.sql(
        """
        INSERT INTO event_keys (tenant_id, idempotency_key, event_id, created_at)
        SELECT 'default', 'k' || n, homing_uuid7(), now() - n * interval '1 day' FROM generate_series(1, 20000) AS n
        """
    )
    homing.ok("retention", "--keep", "30", *DO)
    assert weeks.sql("SELECT count(*) FROM event_keys") == [{"count": 20000}]
    answer = homing.ok("retention", "--keep", "30", *DO, "--forget-keys")
    assert answer["removed"]["idempotency_keys"] == 20000 - 29
    assert weeks.sql("SELECT count(*) FROM event_keys WHERE created_at < now() - interval '30 days'") == [{"count": 0}]


def test_keys_whose_table_is_vacuumed_are_left_and_neither_intake_nor_the_answer_suffers(
    homing: CommandLine, weeks: OldWeeks
) -> None:
    name = weeks.make(8)
    insert = """
        INSERT INTO event_keys (tenant_id, idempotency_key, event_id, created_at)
        VALUES ('default', %(key)s, homing_uuid7(), now() - %(days)s * interval '1 day')
    """
    weeks.sql(insert, key="old", days=60)
    longest, taken = 0.0, 0
    with psycopg.connect(weeks.database_url, application_name="a-vacuum") as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("LOCK TABLE event_keys IN SHARE UPDATE EXCLUSIVE MODE")  # VACUUM's, CREATE INDEX CONCURRENTLY's
        run = pool.submit(homing, "retention", "--keep", "30", *DO, "--forget-keys", "--patience", "2", "--json")
        while not run.done():
            began = time.monotonic()
            weeks.sql(insert, key=f"new {taken}", days=0)
            longest, taken = max(longest, time.monotonic() - began), taken + 1
        answer = run.result()
    assert longest < 1.5, "whoever takes events waits for the one who waits"
    assert answer.code == 6
    assert fates(answer.json) == {name: "dropped"}, "what was done is told"
    assert answer.json["removed"]["idempotency_keys"] == 0
    assert "a-vacuum" in answer.json["keys_in_use"]
    again = homing.ok("retention", "--keep", "30", *DO, "--forget-keys")
    assert (again["removed"]["idempotency_keys"], again["keys_in_use"]) == (1, "")


def test_old_events_without_a_week_go_once_their_deliveries_have(homing: CommandLine, weeks: OldWeeks) -> None:
    name = weeks.make(8)
    endpoint = weeks.endpoint()
    insert = """
        INSERT INTO events (id, tenant_id, event_type, body, request_id, created_at, taken_at)
        VALUES (%(id)s, 'default', 'a', '{}', 'r', now(), now() - %(days)s * interval '1 day')
    """
    old, needed, young = uuid4(), uuid4(), uuid4()
    for event, days in ((old, 60), (needed, 60), (young, 1)):
        weeks.sql(insert, id=event, days=days)
    weeks.sql(
        """
        INSERT INTO deliveries (id, tenant_id, event_id, endpoint_id, state, due_at)
        VALUES (%(id)s, 'default', %(event)s, %(endpoint)s, 'pending', 'infinity')
        """,
        id=weeks.id_in(8),
        event=needed,
        endpoint=endpoint,
    )
    answer = homing.ok("retention", "--keep", "30", *DO)
    assert fates(answer) == {name: "kept"}
    assert answer["removed"]["events_without_week"] == 1
    assert {row["id"] for row in weeks.sql("SELECT id FROM events")} == {needed, young}


def test_detaching_concurrently_is_refused_by_postgres_which_is_why_weeks_are_dropped_under_a_short_lock(
    weeks: OldWeeks,
) -> None:
    name = weeks.make(8)
    with (
        psycopg.connect(weeks.database_url, autocommit=True) as connection,
        pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="default partition"),
    ):
        connection.execute(f"ALTER TABLE events DETACH PARTITION events_{name} CONCURRENTLY")


@pytest.mark.parametrize("keep", ["0", "-1", "40000"])
def test_an_age_that_makes_no_sense_is_refused(homing: CommandLine, keep: str) -> None:
    assert homing("retention", f"--keep={keep}").code == 2


def test_without_a_terminal_and_without_yes_nothing_is_dropped(homing: CommandLine, weeks: OldWeeks) -> None:
    name = weeks.make(8)
    assert homing("retention", "--keep", "30", "--execute").code == 2
    assert name in weeks.partitions()


def heed_interrupts() -> None:
    """In the child: a test run in the background of a shell hands an ignored SIGINT down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _retention_lock_is_held(weeks: OldWeeks) -> bool:
    return bool(
        weeks.sql(
            """
            SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 1752132971
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            """
        )
    )


def _until_somebody_waits_or_ends(weeks: OldWeeks, run: Any) -> None:
    waiting = """
        SELECT pid FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
    _until(lambda: bool(weeks.sql(waiting)) or run.done(), "retention waits for the lock")


def _until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"not within 30 s: {what}"
