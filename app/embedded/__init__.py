"""Embedded servers: a real PostgreSQL and a real Valkey, started from wheels when no external one is configured.

Plain synchronous code: it runs before any event loop starts and after the last one has ended.
"""

from app.embedded.postgres import EmbeddedPostgres
from app.embedded.servers import RunningServers, ensure_servers, running_servers
from app.embedded.valkey import EmbeddedValkey

__all__ = ["EmbeddedPostgres", "EmbeddedValkey", "RunningServers", "ensure_servers", "running_servers"]
