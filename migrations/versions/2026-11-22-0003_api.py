"""What the HTTP API needs: keys, remembered answers, indexes for its listings, and a wall between tenants.

The statements are in the two SQL files beside this one, so that they can be read, and run by hand, as they are.
"""

from __future__ import annotations

from migrations.sql_files import run_sql_file

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql_file("0003_api.up.sql")


def downgrade() -> None:
    run_sql_file("0003_api.down.sql")
