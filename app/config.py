"""Settings: environment variables with the prefix `HOMING_`, or a `.env` file beside the process.

Numbers carry their unit in their name (`_s` seconds, `_bytes`). Settings that contradict each other refuse to start:
`load_settings` raises `SettingsInvalid`, naming the setting, its value and the remedy.
"""

from __future__ import annotations

from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.errors import SettingsInvalid

Network = IPv4Network | IPv6Network


class Settings(BaseSettings):
    """Every setting, its unit, range and default. Frozen: a process reads them once, at start."""

    model_config = SettingsConfigDict(env_prefix="HOMING_", env_file=".env", extra="ignore", frozen=True)

    # --- servers -------------------------------------------------------------------------------------------------
    database_url: SecretStr | None = None
    """PostgreSQL 15 to 18, as `postgresql://user:password@host:port/name`. Unset: Homing starts its own."""
    redis_url: SecretStr | None = None
    """Redis 7 or Valkey 8+, as `redis://host:port/db`. Unset: Homing starts its own Valkey."""
    home: Path = Path(".homing")
    """Folder for the embedded servers' data, their connection file and the generated key file."""
    postgres_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the embedded PostgreSQL on 127.0.0.1; 0 picks a free one at each start."""
    redis_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the embedded Valkey on 127.0.0.1; 0 picks a free one at each start."""
    database_pool_size: Annotated[int, Field(ge=1, le=100)] = 4
    """Connections each process may hold; none is held while a request is on its way."""

    # --- secrets -------------------------------------------------------------------------------------------------
    secret_keys: SecretStr | None = None
    """Keys that encrypt endpoint secrets: comma-separated base64 of 32 bytes each, the first encrypts. Unset: the file."""
    secret_keys_file: Path | None = None
    """File with the same content. Unset, with the embedded PostgreSQL: `<home>/secret_keys`, made on first use (mode 600)."""

    # --- one attempt ---------------------------------------------------------------------------------------------
    deadline_s: Annotated[float, Field(gt=0, le=300)] = 15.0
    """Wall-clock limit of one attempt, from dialling to the last byte read."""
    connect_timeout_s: Annotated[float, Field(gt=0, le=300)] = 5.0
    """Limit for connecting and the TLS handshake, within the deadline."""
    lease_s: Annotated[float, Field(gt=0, le=600)] = 20.0
    """How long a published or started delivery belongs to its worker before it is due again; at least deadline + 1."""
    response_read_bytes: Annotated[int, Field(ge=0, le=1 << 20)] = 64 * 1024
    """At most this much of a response is read."""
    response_keep_bytes: Annotated[int, Field(ge=0, le=64 * 1024)] = 2 * 1024
    """At most this much of a response is stored with its attempt, after redaction."""
    payload_max_bytes: Annotated[int, Field(ge=1, le=16 << 20)] = 1 << 20
    """An outbox row whose payload is longer is set aside with that reason."""
    allow_networks: Annotated[tuple[str, ...], NoDecode] = ()
    """Networks (CIDR, comma-separated) that may be called although they are not public, such as `127.0.0.0/8`."""
    allow_http: bool = False
    """Whether plain http may be used to public addresses. In `allow_networks` it always may."""
    allow_ports: str = "80,443,1024-65535"
    """Ports and ranges of ports that may be called at public addresses. In `allow_networks` all may."""

    # --- worker --------------------------------------------------------------------------------------------------
    worker_threads: Annotated[int, Field(ge=1, le=256)] = 16
    """Chunks that one worker process handles at once."""
    chunk_max: Annotated[int, Field(ge=1, le=50)] = 50
    """Deliveries in one message, at most; also the most duplicates that killing one chunk can cause."""
    connections_per_endpoint: Annotated[int, Field(ge=1, le=1000)] = 100
    """Requests that one worker process has under way to one endpoint, at most."""
    quarantine_after: Annotated[int, Field(ge=1, le=100)] = 5
    """Attempts in a row that end without a recorded result (their worker died) before a delivery is dead-lettered."""

    # --- poller --------------------------------------------------------------------------------------------------
    claim_batch: Annotated[int, Field(ge=1, le=5000)] = 500
    """Rows that the poller takes in one transaction, at most."""
    publish_ahead: Annotated[int, Field(ge=1, le=1000)] = 32
    """Chunks that may wait in Redis; the rest of the backlog stays in Postgres."""
    slow_poll_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    """How long an idle poller sleeps at most; a commit to the outbox wakes it earlier."""

    # --- operators ----------------------------------------------------------------------------------------------
    replay_confirm_threshold: Annotated[int, Field(ge=1)] = 50
    """Matches from which a bulk replay at high concurrency needs `--confirm-large`."""

    # --- HTTP API ------------------------------------------------------------------------------------------------
    api_host: str = "127.0.0.1"
    """Address that the API listens on; it speaks plain HTTP, so put TLS in front of it before you open it further."""
    api_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port of the API; 0 picks a free one."""

    # --- tests only ----------------------------------------------------------------------------------------------
    failpoints: str | None = None
    """Where a test kills this process (`app.failpoints`); refused on a database that is not marked for tests."""

    # --- seeing --------------------------------------------------------------------------------------------------
    metrics_host: str = "127.0.0.1"
    """Address that pollers and workers serve `/metrics` and `/healthz` on; in a container, `0.0.0.0`."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """First port tried for `/metrics` and `/healthz`; each process takes the next free one of 100. 0: any."""
    log_level: str = "info"
    """debug, info, warning or error."""

    @field_validator("allow_networks", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("allow_networks")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            ip_network(text)
        return value

    @field_validator("allow_ports")
    @classmethod
    def _are_ports(cls, value: str) -> str:
        if not all(ports.start >= 1 and len(ports) and ports.stop <= 65536 for ports in _ports(value)):
            raise ValueError("must be ports from 1 to 65535 and ranges of them, such as 443,8000-8999")
        return value

    @field_validator("log_level")
    @classmethod
    def _is_level(cls, value: str) -> str:
        if value.lower() not in {"debug", "info", "warning", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return value.lower()

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        if self.lease_s < self.deadline_s + 1:
            raise ValueError(
                f"HOMING_LEASE_S={self.lease_s:g} must be at least HOMING_DEADLINE_S={self.deadline_s:g} plus 1: "
                "a shorter lease would send the same delivery twice at once"
            )
        if self.connect_timeout_s > self.deadline_s:
            raise ValueError(
                f"HOMING_CONNECT_TIMEOUT_S={self.connect_timeout_s:g} must not exceed "
                f"HOMING_DEADLINE_S={self.deadline_s:g}"
            )
        if self.response_keep_bytes > self.response_read_bytes:
            raise ValueError("HOMING_RESPONSE_KEEP_BYTES must not exceed HOMING_RESPONSE_READ_BYTES")
        return self

    @cached_property
    def allowed_networks(self) -> tuple[Network, ...]:
        """`allow_networks`, parsed."""
        return tuple(ip_network(text) for text in self.allow_networks)

    @cached_property
    def allowed_ports(self) -> tuple[range, ...]:
        """`allow_ports`, parsed."""
        return _ports(self.allow_ports)


def _ports(text: str) -> tuple[range, ...]:
    """Ranges of ports, from `443,8000-8999`; ValueError for what is neither."""
    pairs = [part.partition("-") for part in text.split(",")]
    return tuple(range(int(first), int(last if dash else first) + 1) for first, dash, last in pairs)


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment; `overrides` win.

    Raises:
        SettingsInvalid: with one line per wrong setting. Nothing has been started.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            name = "HOMING_" + "_".join(str(part) for part in problem["loc"]).upper() if problem["loc"] else ""
            lines.append(f"{name}: {problem['msg']}".lstrip(": ").replace("Value error, ", ""))
        raise SettingsInvalid("settings refused:\n  " + "\n  ".join(lines)) from None
