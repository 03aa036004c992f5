"""The pipeline: outbox, events, deliveries, attempts, dead letters, replays.

The statements are in the two SQL files beside this one, so that they can be read, and run by hand, as they are.
"""

from __future__ import annotations

from migrations.sql_files import run_sql_file

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql_file("0001_pipeline.up.sql")


def downgrade() -> None:
    run_sql_file("0001_pipeline.down.sql")
