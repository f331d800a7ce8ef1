"""`alerts`: who is told how runs go. Addresses are secrets: they are read without echo and shown masked."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from fluxcore.errors import UserError

from .options import Outputs, outputs_folder
from .out import note, say, table

TargetName = Annotated[str, typer.Argument(metavar="NAME", help="The target's name.", show_default=False)]

cli = typer.Typer(help="Who is told how runs go; alone it lists them (docs/alerts.md).")


@cli.callback(invoke_without_command=True)
def alerts(context: typer.Context, outputs: Outputs = None) -> None:
    """Who is told how runs go; alone it lists them (docs/alerts.md)."""
    context.obj = outputs
    if context.invoked_subcommand is None:
        show(_folder(context, None))


def show(outputs: Path) -> None:
    """The table of the targets, masked."""
    from fluxcore.alerts import KINDS, is_shared, load_targets

    targets = load_targets(outputs)
    if not targets:
        note("nobody is told yet; `./fluxgym alerts add phone` asks for an address")
        return
    rows = []
    for target in targets:
        kinds = [kind for kind in KINDS if kind in target.kinds]
        source = "$FLUXGYM_ALERTS" if target.from_environment else ".alerts.json"
        rows.append((target.name, target.masked, "all" if len(kinds) == len(KINDS) else ", ".join(kinds), source))
    table(("name", "address", "is told of", "kept in"), rows)
    if is_shared(outputs):
        note(f"others on this machine can read {outputs}/.alerts.json: chmod 600 it, or use $FLUXGYM_ALERTS")


@cli.command()
def add(
    context: typer.Context,
    name: TargetName,
    url: Annotated[
        str | None,
        typer.Argument(metavar="[URL]", help="An Apprise URL; better given on standard input or when asked for."),
    ] = None,
    on: Annotated[
        str | None, typer.Option("--on", metavar="KIND,…", help="Only of these, such as failed,stalled.")
    ] = None,
    outputs: Outputs = None,
) -> None:
    """Add a target. Without URL it is asked for, or read from standard input: so no shell's history keeps it."""
    from fluxcore.alerts import KINDS, add_target, check_url, is_shared
    from fluxcore.alerts.targets import check_kinds, check_name

    folder = _folder(context, outputs)
    check_name(name)
    kinds = check_kinds(KINDS if on is None else [kind.strip() for kind in on.split(",")])
    address = (_ask_for_url() if url is None else url).strip()
    check_url(address)
    target = add_target(folder, name, address, kinds)
    note(f"{name} ({target.masked}) will be told; `./fluxgym alerts test {name}` sends a test")
    if is_shared(folder):
        note(f"this disk keeps no file modes: others may read {folder}/.alerts.json; $FLUXGYM_ALERTS is safer here")


@cli.command()
def remove(context: typer.Context, name: TargetName, outputs: Outputs = None) -> None:
    """Forget a target."""
    from fluxcore.alerts import remove_target

    remove_target(_folder(context, outputs), name)
    note(f"{name} is forgotten")


@cli.command()
def test(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The target (default: all).")] = None,
    outputs: Outputs = None,
) -> int:
    """Send a test and wait for it. Exit 1 where one did not arrive."""
    from fluxcore.alerts import load_targets, send_test

    folder = _folder(context, outputs)
    names = [target.name for target in load_targets(folder)] if name is None else [name]
    if not names:
        raise UserError("nobody is told yet; add a target with ./fluxgym alerts add NAME")
    failed = 0
    for one in names:
        try:
            send_test(folder, one)
            say(f"{one}: sent")
        except UserError as error:
            if name is not None:
                raise
            note(str(error))
            failed += 1
    return 1 if failed else 0


def _folder(context: typer.Context, given: Path | None) -> Path:
    """`--outputs` may stand before or after the second word."""
    return outputs_folder(given or context.obj)


def _ask_for_url() -> str:
    if sys.stdin.isatty():
        return getpass.getpass("Address (an Apprise URL, not shown): ")
    return sys.stdin.readline()
