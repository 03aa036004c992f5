"""`homing endpoints`: make, list, show, pause and resume them, and give them new signing secrets."""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import typer

from workers.cli.access import in_transaction, open_access, operator
from workers.cli.options import Json, Limit, Tenant
from workers.cli.output import give, say

if TYPE_CHECKING:
    from app.config import Settings

app = typer.Typer(help="Endpoints: where events go.")

EndpointId = Annotated[UUID, typer.Argument(metavar="ID", help="The endpoint.")]
Reason = Annotated[str | None, typer.Option(help="Why; kept in the audit trail.")]
SecretStdin = Annotated[bool, typer.Option("--secret-stdin", help="Read the signing secret (whsec_...) from stdin.")]

_SPAN = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@app.command("create")
def create(
    url: Annotated[str, typer.Option(help="Where to POST.")],
    event_type: Annotated[
        list[str] | None,
        typer.Option(metavar="T", help="An exact type, `prefix.*` or `*`; may be repeated. All types by default."),
    ] = None,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    scheme: Annotated[Literal["standard", "hex"], typer.Option(help="How deliveries are signed.")] = "standard",
    max_attempts: Annotated[int | None, typer.Option(help="Automatic attempts; 5 by default.")] = None,
    base: Annotated[float | None, typer.Option(help="Seconds after the first attempt; 10.")] = None,
    factor: Annotated[float | None, typer.Option(help="Growth of the delay; 4.")] = None,
    cap: Annotated[float | None, typer.Option(help="Longest delay in seconds; 3600.")] = None,
    jitter: Annotated[float | None, typer.Option(help="Share by which a delay varies; 0.2.")] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="S,S,...", help="Explicit delays in seconds, such as 60,120,300.")
    ] = None,
    secret_stdin: SecretStdin = False,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Make an endpoint. Its signing secret is printed once, and never again."""
    from app.backoff import RetryPolicy
    from app.endpoints import create_endpoint

    wanted: dict[str, Any] = {"max_attempts": max_attempts, "base_s": base, "factor": factor, "cap_s": cap}
    wanted |= {"jitter": jitter, "schedule_s": None if schedule is None else _delays(schedule)}
    policy = RetryPolicy.from_mapping({field: value for field, value in wanted.items() if value is not None})
    secret = _from_stdin() if secret_stdin else None
    with open_access() as access:
        keys = access.secret_keys()
        made = access.transact(
            lambda connection: create_endpoint(
                connection,
                keys,
                tenant_id=tenant,
                url=url,
                actor=operator(),
                name=name,
                event_types=tuple(event_type or ("*",)),
                scheme=scheme,
                policy=policy,
                secret=secret,
            )
        )
        settings = access.settings
    if secret is not None:
        made.pop("secret")  # whoever wrote it knows it
    give(made, as_json=as_json)
    if secret is None:
        say("the secret is shown this once: give it to the receiver now")
    if warning := _why_not_callable(made["url"], settings):
        say(f"warning: {warning}")


@app.command("list")
def list_all(tenant: Tenant = "default", limit: Limit = 100, as_json: Json = False) -> None:
    """List a tenant's endpoints, oldest first."""
    from app.reads import list_endpoints

    rows = in_transaction(list_endpoints, tenant_id=tenant, limit=limit)
    columns = ("id", "name", "url", "event_types", "status", "scheme")
    give(rows, as_json=as_json, columns=columns, none=f"tenant {tenant!r} has no endpoint yet")


@app.command("show")
def show(endpoint_id: EndpointId, tenant: Tenant = "default", as_json: Json = False) -> None:
    """Show an endpoint, without its secrets, and how its deliveries stand."""
    from app.reads import show_endpoint

    give(in_transaction(show_endpoint, tenant_id=tenant, endpoint_id=endpoint_id), as_json=as_json)


@app.command("pause")
def pause(endpoint_id: EndpointId, reason: Reason = None, tenant: Tenant = "default", as_json: Json = False) -> None:
    """Hold an endpoint's deliveries back; they wait without using up attempts."""
    from app.endpoints import pause_endpoint

    in_transaction(pause_endpoint, tenant_id=tenant, endpoint_id=endpoint_id, actor=operator(), reason=reason)
    give({"id": endpoint_id, "status": "paused"}, as_json=as_json)


@app.command("resume")
def resume(endpoint_id: EndpointId, reason: Reason = None, tenant: Tenant = "default", as_json: Json = False) -> None:
    """Call a paused or disabled endpoint again; what waited for it is due at once."""
    from app.endpoints import resume_endpoint

    freed = in_transaction(resume_endpoint, tenant_id=tenant, endpoint_id=endpoint_id, actor=operator(), reason=reason)
    give({"id": endpoint_id, "status": "active", "deliveries_freed": freed}, as_json=as_json)


@app.command("archive")
def archive(endpoint_id: EndpointId, reason: Reason = None, tenant: Tenant = "default", as_json: Json = False) -> None:
    """Never call an endpoint again, for good. What waits for it goes to the dead letters, where it is kept."""
    from app.endpoint_changes import archive_endpoint

    given_up = in_transaction(
        archive_endpoint, tenant_id=tenant, endpoint_id=endpoint_id, if_match=None, actor=operator(), reason=reason
    )
    give({"id": endpoint_id, "status": "archived", "deliveries_given_up": given_up}, as_json=as_json)
    if given_up:
        say(f"what waited for it goes to the dead letters: homing dead-letters list --endpoint {endpoint_id}")


@app.command("rotate-secret")
def rotate_secret(
    endpoint_id: EndpointId,
    overlap: Annotated[
        str, typer.Option(metavar="SPAN", help="How long the old secret signs too: 0s to 7d, such as 90m or 24h.")
    ] = "24h",
    secret_stdin: SecretStdin = False,
    reason: Reason = None,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> None:
    """Give an endpoint a new signing secret; both sign until the overlap ends. It is printed once, and never again."""
    from app.endpoints import rotate_secret as rotate

    both = _span(overlap)
    secret = _from_stdin() if secret_stdin else None
    with open_access() as access:
        keys = access.secret_keys()
        made = access.transact(
            lambda connection: rotate(
                connection,
                keys,
                tenant_id=tenant,
                endpoint_id=endpoint_id,
                actor=operator(),
                reason=reason,
                overlap=both,
                secret=secret,
            )
        )
    if secret is not None:
        made.pop("secret")  # whoever wrote it knows it
    give(made, as_json=as_json)
    if secret is None:
        say("the secret is shown this once: give it to the receiver before the old one expires")


def _from_stdin() -> str:
    from app.errors import InvalidInput

    if not (secret := sys.stdin.readline().strip()):
        raise InvalidInput("--secret-stdin: stdin was empty; write `whsec_` and base64 of 24 to 64 bytes to it")
    return secret


def _span(text: str) -> timedelta:
    if match := _SPAN.fullmatch(text.strip()):
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    raise typer.BadParameter(f"{text!r} is not a span such as 90m, 24h or 7d", param_hint="--overlap")


def _delays(schedule: str) -> list[float]:
    try:
        return [float(part) for part in schedule.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{schedule!r} is not a list of seconds such as 60,120,300", param_hint="--schedule"
        ) from None


def _why_not_callable(url: str, settings: Settings) -> str | None:
    """Why this URL cannot be called; None when it can, as far as can be told without DNS."""
    from ipaddress import ip_address
    from urllib.parse import urlsplit

    from app.addresses import AddressGuard

    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    insecure = parts.scheme == "http" and not settings.allow_http
    use_https = (
        f"plain http is refused unless {host} is in HOMING_ALLOW_NETWORKS: use https, or set HOMING_ALLOW_HTTP=true"
    )
    literal = "127.0.0.1" if host == "localhost" or host.endswith(".localhost") else host
    try:
        address = ip_address(literal)
    except ValueError:
        return use_https if insecure else None
    verdict = AddressGuard(settings.allowed_networks).verdict(address)
    if verdict is None:
        is_open = any(
            address.version == network.version and address in network for network in settings.allowed_networks
        )
        return use_https if insecure and not is_open else None
    network = "127.0.0.0/8" if literal == "127.0.0.1" else f"{address}/{address.max_prefixlen}"
    return (
        f"{host} is not public ({verdict}), so every delivery to it will fail; "
        f"set HOMING_ALLOW_NETWORKS={network} for the workers if you mean it"
    )
