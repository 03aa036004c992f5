"""Everything that knows about events and Postgres; nothing here imports Dramatiq or `workers`."""

__version__ = "0.1.0"
