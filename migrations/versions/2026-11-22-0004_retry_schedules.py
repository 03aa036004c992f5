"""No endpoint has a schedule of retries that the program would refuse.

The statements are in the two SQL files beside this one, so that they can be read, and run by hand, as they are.
"""

from __future__ import annotations

from migrations.sql_files import run_sql_file

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql_file("0004_retry_schedules.up.sql")


def downgrade() -> None:
    run_sql_file("0004_retry_schedules.down.sql")
