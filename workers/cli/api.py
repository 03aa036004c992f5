"""`homing api`: serve the HTTP API."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workers.cli.access import read_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("api", rich_help_panel="Run")(api)


def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; HOMING_API_HOST, 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="HOMING_API_PORT, 8080.")] = None,
    openapi: Annotated[bool, typer.Option("--openapi", help="Print the API's description and exit.")] = False,
) -> None:
    """Serve the HTTP API until SIGTERM or Ctrl-C. Any number may run. Keys: `homing keys create`."""
    if openapi:
        from app.api.application import openapi_document

        print(openapi_document(), end="")
        return

    from app.api.listening import run_api
    from app.embedded import ensure_servers
    from app.sealing import SecretKeys
    from workers.cli.processes import refuse_without_schema
    from workers.processes import stop_with_parent

    settings = read_settings()
    given: dict[str, Any] = {"api_host": host, "api_port": port}
    settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    with ensure_servers(settings) as servers:
        keys = SecretKeys.load(settings, embedded=settings.database_url is None)
        refuse_without_schema(servers.database_url)
        stop_with_parent()
        run_api(settings, servers.database_url, servers.redis_url, keys)
