"""Loopback ports for the embedded servers."""

from __future__ import annotations

import random
import socket

from app.errors import EmbeddedServerError

LOOPBACK = "127.0.0.1"
# Below the range from which Linux and macOS take ports for outgoing connections: a port stays free over a restart.
FIRST_PORT, LAST_PORT = 20_000, 32_000


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT does not count
        try:
            probe.bind((LOOPBACK, port))
            probe.listen()
        except OSError:
            return False
    return True


def free_port() -> int:
    """A loopback port that nobody listens on.

    Raises:
        EmbeddedServerError: 200 random ports were all taken.
    """
    for port in random.sample(range(FIRST_PORT, LAST_PORT), 200):
        if is_free(port):
            return port
    raise EmbeddedServerError(f"no free port found between {FIRST_PORT} and {LAST_PORT} on {LOOPBACK}; free some")
