"""Bulk replay, groups of dead letters, and the audit chain.

The statements are in the two SQL files beside this one, so that they can be read, and run by hand, as they are.
"""

from __future__ import annotations

from migrations.sql_files import run_sql_file

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql_file("0002_dead_letter_tools.up.sql")


def downgrade() -> None:
    run_sql_file("0002_dead_letter_tools.down.sql")
