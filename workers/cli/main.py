"""Entry point of `homing`: puts the commands together, and turns every expected error into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 not allowed, 5 refused or conflict, 6 partly done, 7 a server is
away, 130 interrupted. `poller`, `worker` and `up` exit with 0 when SIGINT or SIGTERM has stopped them in order.

With `--json` an error is one JSON object on stderr, in place of the line:
`{"error": {"kind": "NotFound", "message": "...", "exit_code": 3}}`. Modules that take long to import are imported
inside the commands that need them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from app import __version__
from workers.cli import (
    api,
    audit,
    dead_letters,
    deliveries,
    doctor,
    endpoints,
    events,
    keys,
    processes,
    replay,
    replays,
    retention,
    schema,
    sealing_keys,
    smoke,
    status,
    tenants,
)
from workers.cli.failures import explain, tell

#: Commands that other packages bring along: where they are, imported only when they run, and what the help says of them.
BROUGHT_ALONG = {
    "demo": ("workers.demo.command:demo", "Run everything for real, kill a worker, and prove that nothing is lost."),
    "bench": ("workers.bench.command:bench", "Measure throughput and latency on real servers of its own."),
    "chaos": (
        "workers.chaos.command:chaos",
        "Break things on purpose, on real servers, and prove that nothing is lost.",
    ),
}


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *BROUGHT_ALONG]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in BROUGHT_ALONG:
            return _command(cmd_name, lambda: None, help=BROUGHT_ALONG[cmd_name][1])
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in BROUGHT_ALONG:
            module, _, attribute = BROUGHT_ALONG[name][0].partition(":")
            command = _command(name, getattr(import_module(module), attribute))
        return name, command, rest


def _command(name: str, function: Callable[..., None], **settings: Any) -> Any:
    """A command made of a function as Typer makes them."""
    one = typer.Typer(add_completion=False)
    one.command(name, rich_help_panel="Try and measure", **settings)(function)
    return typer.main.get_command(one)


app = typer.Typer(
    cls=_Commands,
    name="homing",
    help="Delivers events committed to a Postgres outbox, signed, to HTTP endpoints, and never loses one.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"homing {__version__}")
        raise typer.Exit


@app.callback()
def _homing(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass


for _module in (processes, api, schema, retention, status, doctor, smoke, replay):
    _module.register(app)
for _group, _name in (
    (endpoints.app, "endpoints"),
    (tenants.app, "tenants"),
    (keys.app, "keys"),
    (sealing_keys.app, "secrets"),
    (events.app, "events"),
    (deliveries.app, "deliveries"),
    (dead_letters.app, "dead-letters"),
    (replays.app, "replays"),
    (audit.app, "audit"),
):
    app.add_typer(_group, name=_name, no_args_is_help=True, rich_help_panel="Look and act")


def run(arguments: Sequence[str]) -> int:
    """Run one command line, without the program's name; returns its exit code. What is a defect of ours is raised."""
    arguments = list(arguments)
    # Looked for here and not in the parsed options: a command line that cannot be parsed must be answered too.
    as_json = "--json" in arguments
    try:
        # A command that ends early by `typer.Exit` gives its code, any other gives None.
        code = typer.main.get_command(app).main(args=arguments, prog_name="homing", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # What is still buffered cannot be written either; a second error at exit would only be noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        print("homing: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        failure = explain(error)
        if failure is None:
            raise
        tell(failure, as_json=as_json)
        return failure.exit_code


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, _on_terminate)
    sys.exit(run(sys.argv[1:]))


def _on_terminate(number: int, frame: FrameType | None) -> NoReturn:
    # As an exception, so that servers which were started for this command are stopped.
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
