"""The demo's endpoints: four receivers as one meets them, told apart by their path."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncEngine

from app.backoff import RetryPolicy
from app.endpoints import create_endpoint
from app.sealing import SecretKeys
from app.signing import new_secret

ACTOR = "homing demo"
TENANT = "default"


@dataclass(frozen=True)
class Destination:
    """One endpoint: its name is its path, and what the receiver does there."""

    name: str
    event_types: tuple[str, ...]
    about: str
    policy: RetryPolicy
    scheme: str = "standard"
    secret: str = field(default_factory=new_secret, repr=False)


def destinations() -> list[Destination]:
    """Four endpoints with fresh secrets; short delays, so that the demo ends quickly."""
    patient = RetryPolicy(max_attempts=5, base_s=0.3, factor=2, cap_s=2)
    return [
        Destination("healthy", ("order.*",), "answers 200 at once", patient),
        Destination("flaky", ("order.placed",), "works, but answers 503 the first time", patient),
        Destination("slow", ("*",), "answers after 0.3 s", patient, scheme="hex"),
        Destination(
            "dead",
            ("order.cancelled",),
            "answers 500 until it is repaired",
            RetryPolicy(max_attempts=3, base_s=0.3, factor=2, cap_s=2),
        ),
    ]


async def register(engine: AsyncEngine, keys: SecretKeys, wanted: list[Destination], port: int) -> None:
    """Make the endpoints, each at its path on a local port.

    Raises:
        sqlalchemy.exc.DBAPIError: the database refused; none was made.
    """
    async with engine.begin() as connection:
        for destination in wanted:
            await create_endpoint(
                connection,
                keys,
                tenant_id=TENANT,
                name=destination.name,
                url=f"http://127.0.0.1:{port}/{destination.name}",
                actor=ACTOR,
                event_types=destination.event_types,
                scheme=destination.scheme,
                policy=destination.policy,
                secret=destination.secret,
            )
