"""Runs the SQL files beside the revisions: they can be read, and run by hand, as they are."""

from __future__ import annotations

from pathlib import Path

from alembic import op

VERSIONS = Path(__file__).parent / "versions"


def run_sql_file(name: str) -> None:
    """Run all statements of `versions/<name>` on the migration's connection."""
    sql = (VERSIONS / name).read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
