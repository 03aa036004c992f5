"""Alembic migrations; run by `homing migrate` through `app.migrate`."""
