"""HTTP/1.1 as uvicorn speaks it, save that bytes which are no HTTP get a problem as their answer too."""

from __future__ import annotations

import secrets
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api.problems import Problem, render


class ProblemProtocol(H11Protocol):
    """What one connection speaks."""

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be read as a request; the connection ends."""
        request_id = f"req_{secrets.token_hex(12)}"
        problem = Problem("INT-400-INVALID-PAYLOAD", "This is not HTTP/1.1 as it should be.")
        answer = render(problem, request_id, None)
        headers = [*answer.raw_headers, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
        parts: tuple[Any, ...] = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        )
        for part in parts:
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()
