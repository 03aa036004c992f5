"""What the HTTP API needs: keys, remembered answers, indexes for its listings, and a wall between tenants.

The statements are in the two SQL files beside this one, so that they can be read, and run by hand, as they are.
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def _run(name: str) -> None:
    sql = (HERE / name).read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})


def upgrade() -> None:
    _run("0003_api.up.sql")


def downgrade() -> None:
    _run("0003_api.down.sql")
