"""${message}

The statements are in the two SQL files beside this one, so that they can be read, and run by hand, as they are.
"""

from __future__ import annotations

from migrations.sql_files import run_sql_file

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql_file("${up_revision}.up.sql")


def downgrade() -> None:
    run_sql_file("${up_revision}.down.sql")
