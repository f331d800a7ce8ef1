"""`new`, `start`, `resume`, `stop`, `sample`, `save`: making runs and asking for what is to become of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fluxcore.errors import UserError
from fluxcore.log import Event
from fluxcore.runs import load_run

from .follow import wait_for_end, wait_until_stopped
from .options import Changes, Name, Outputs, Settings, Wait, build_config, outputs_folder, parse_settings
from .out import note, say

SOURCE = "cli"


def new(
    name: Name,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Pictures, with captions in .txt files beside them.")
    ] = None,
    trigger: Annotated[str | None, typer.Option(metavar="WORD", help="The trigger word.")] = None,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="The base model (see fluxcore/models).")] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings from a ui_state.json, or kohya's or ai-toolkit's config."),
    ] = None,
    settings: Settings = None,
    start: Annotated[bool, typer.Option("--start", help="Start it as well.")] = False,
    wait: Wait = False,
    outputs: Outputs = None,
) -> int:
    """Make a run: its config and a copy of its pictures. It starts with --start, or `start NAME`."""
    from fluxcore.dataset import copy_dataset
    from fluxcore.runs import create_run, request_start

    if images is None:
        raise UserError("which pictures? Name their folder with --images DIR")
    if wait and not start:
        raise UserError("--wait follows a run that starts: give --start too")
    folder = outputs_folder(outputs)
    resolved = build_config(name, config, settings or [], {"concept_sentence": trigger, "base_model": base})

    def fill(dataset: Path) -> None:
        for warning in copy_dataset(images, dataset):
            note(warning)

    made = create_run(folder, resolved, SOURCE, fill)
    say(str(made.path))
    return _go(folder, name, request_start(folder, name, SOURCE), wait) if start else 0


def start(
    name: Name,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin afresh although it ran before; old checkpoints are moved aside.")
    ] = False,
    settings: Changes = None,
    wait: Wait = False,
    outputs: Outputs = None,
) -> int:
    """Start a run. Exit 0 means that the request is in the log."""
    from fluxcore.config import absolute_paths
    from fluxcore.runs import check_outputs, request_start

    folder = outputs_folder(outputs)
    check_outputs(folder)
    changes = absolute_paths(parse_settings(settings or []))
    return _go(folder, name, request_start(folder, name, SOURCE, restart=restart, settings=changes), wait)


def resume(
    name: Name,
    from_state: Annotated[
        str | None, typer.Option("--from", metavar="STATE", help="A state folder's name (default: the newest).")
    ] = None,
    settings: Changes = None,
    wait: Wait = False,
    outputs: Outputs = None,
) -> int:
    """Go on from a checkpoint."""
    from fluxcore.config import absolute_paths
    from fluxcore.runs import check_outputs, request_resume

    folder = outputs_folder(outputs)
    check_outputs(folder)
    changes = absolute_paths(parse_settings(settings or []))
    return _go(folder, name, request_resume(folder, name, SOURCE, from_state=from_state, settings=changes), wait)


def stop(name: Name, wait: Wait = False, outputs: Outputs = None) -> int:
    """Stop a run; it saves a checkpoint first."""
    from fluxcore.runs import request_stop
    from fluxcore.runs.supervision import runner_alive

    folder = outputs_folder(outputs)
    request_stop(folder, name, SOURCE)
    none = runner_alive(folder) is None
    start_runner(folder)
    started = "; no runner was alive, the one that is started for it goes on with what waits too" if none else ""
    note(f"{name} is asked to stop{started}")
    return wait_until_stopped(load_run(folder, name)[0]) if wait else 0


def sample(name: Name, outputs: Outputs = None) -> int:
    """Have a run draw its sample prompts now."""
    from fluxcore.runs import request_sample

    request_sample(outputs_folder(outputs), name, SOURCE)
    note(f"{name} draws its samples after the present step")
    return 0


def save(name: Name, outputs: Outputs = None) -> int:
    """Have a run save a checkpoint and its LoRA now."""
    from fluxcore.runs import request_save

    request_save(outputs_folder(outputs), name, SOURCE)
    note(f"{name} saves a checkpoint after the present step")
    return 0


def _go(outputs: Path, name: str, request: Event, wait: bool) -> int:
    from fluxcore.runs import read_installation

    start_runner(outputs)
    if read_installation(outputs).paused:
        note("the queue is paused: nothing starts before `./fluxgym queue resume`")
    if not wait:
        note(f"{name} is asked for; `./fluxgym status {name}` shows it, `./fluxgym stop {name}` ends it")
        return 0
    return wait_for_end(load_run(outputs, name)[0], request)


def start_runner(outputs: Path) -> None:
    """See that a runner serves `outputs`. Raises UserError where none can be started; the request stays in the log."""
    from fluxcore.runs.supervision import ensure_runner

    ensure_runner(outputs)
