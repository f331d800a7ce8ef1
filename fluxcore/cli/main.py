"""All verbs, and what becomes of an error: one line on standard error and the contract's exit code, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fluxcore import __version__
from fluxcore.errors import UserError

from . import alerts, demo, files, look, monitor, plan, publish, query, queue, remove, runs, serve, testing
from .out import note, say

EXIT_FAILED, EXIT_USAGE, EXIT_INTERNAL, EXIT_INTERRUPTED = 1, 64, 70, 130

UsageError: Any = typer.BadParameter.__bases__[0]
"""click's usage error; typer carries its own copy of click, so it is found through typer."""

cli = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Train FLUX LoRAs: start here with `./fluxgym demo` or `./fluxgym app`.",
)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
VERBS: dict[str, Callable[..., Any]] = {
    "demo": demo.demo,
    "app": serve.app,
    "down": serve.down,
    "new": runs.new,
    "plan": plan.plan,
    "start": runs.start,
    "resume": runs.resume,
    "stop": runs.stop,
    "sample": runs.sample,
    "save": runs.save,
    "monitor": monitor.monitor,
    "queue": queue.queue,
    "status": look.status,
    "logs": look.logs,
    "events": look.events,
    "checkpoints": look.checkpoints,
    "sql": query.sql,
    "compact": query.compact,
    "export": files.export,
    "import": files.import_,
    "convert": files.convert,
    "samples": files.samples,
    "publish": publish.publish,
    "delete": remove.delete,
    "prune": remove.prune,
    "runner": serve.runner,
}


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"fluxgym {__version__}")
        raise typer.Exit


@cli.callback()
def every_verb(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before the verb."""


for verb, function in VERBS.items():
    cli.command(verb)(function)
cli.add_typer(alerts.cli, name="alerts")
cli.command("test", context_settings=PASS_ON)(testing.test)
cli.command("shots", context_settings=PASS_ON)(testing.shots)
cli.command("bench", context_settings=PASS_ON)(testing.bench)


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit code. FLUXGYM_DEBUG=1 lets every error through with its traceback."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = os.environ.get("FLUXGYM_DEBUG", "") not in ("", "0")
    try:
        code = cli(args=arguments or ["--help"], prog_name="fluxgym", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        note("broken off")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED
    except Exception as error:
        if debug:
            raise
        return _explain(error)


def _explain(error: Exception) -> int:
    if isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "fluxgym"
        note(f"{error.format_message().rstrip('.')} (see `{path} --help`)")
        return EXIT_USAGE
    if isinstance(error, UserError):
        note(str(error))
        return int(getattr(error, "exit_code", EXIT_USAGE))
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        note(f"{error.strerror or error}{where}")
        return EXIT_USAGE
    note(f"an error of FluxGym's own, please report it: {type(error).__name__}: {error} (FLUXGYM_DEBUG=1 shows where)")
    return EXIT_INTERNAL
