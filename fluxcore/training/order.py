"""What the runner's command line asks of a trainer, for trainers of every make: config, checkpoint, log. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fluxcore.config import RunConfig, parse_saved
from fluxcore.errors import UserError
from fluxcore.log import EventLog, PatientLog
from fluxcore.models.registry import use_outputs
from fluxcore.runs import RunFolder, RunState, find_state, load_run
from fluxcore.runs.checkpoints import set_aside
from fluxcore.runs.exits import CHECKPOINT_DAMAGED
from fluxcore.runs.retention import sweep_leftovers
from fluxcore.runs.state_files import content_problem

from .failures import Exit, TrainingError


@dataclass(frozen=True)
class Order:
    """One attempt. `resume_from`: the state folder to go on from, whole, and its `step`; None and 0 for a fresh one.

    `request`: the event that asked for it, as `writer:n`; None for a trainer that was started by hand.
    """

    folder: RunFolder
    attempt: int
    config: RunConfig
    log: PatientLog
    resume_from: Path | None
    step: int
    request: str | None = None
    make_way: Callable[[], object] = lambda: None
    """Sets aside what lies beyond the resume point: to be called once nothing more is in the way of the training."""


def parse_arguments(module: str, argv: list[str] | None) -> argparse.Namespace:
    """The arguments with which the runner starts every trainer."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--outputs", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--request", help="the request that this attempt serves; default: the newest config")
    parser.add_argument("--resume-from", help="a state folder of the run")
    return parser.parse_args(argv)


def wanted_config(state: RunState, arguments: argparse.Namespace) -> RunConfig:
    """The config that the attempt is to train. Raises ConfigError."""
    attempt = next((a for a in state.attempts if a.number == arguments.attempt), None)
    request = next((r for r in state.requests if r.id == arguments.request), None)
    config_id = attempt.config if attempt else request.config if request else state.config_id
    return parse_saved(state.configs.get(config_id, state.config))


def wanted_processes(arguments: argparse.Namespace) -> int:
    """How many processes the config asks for; 1 where it can't be read, so that one says why."""
    try:
        _, state = load_run(use_outputs(arguments.outputs.absolute()), arguments.run)
        return wanted_config(state, arguments).processes
    except UserError:
        return 1


def take_order(arguments: argparse.Namespace, first: bool = True) -> Order:
    """Read the run's log and look at its checkpoint. Raises UserError where the order can't be served.

    `first` off: another process of the same training sets aside what is in the way.
    """
    folder, state = load_run(use_outputs(arguments.outputs.absolute()), arguments.run)
    config = wanted_config(state, arguments)
    resume_from = None
    step = 0
    # Who asked has decided: a restart names no state, whatever the run once started from.
    wanted = arguments.resume_from or ("" if arguments.request else config.resume_from_checkpoint)
    if wanted:
        found = find_state(folder, wanted)
        if found is None or not found.complete or found.step is None:
            problem = found.problem if found else "there is none"
            raise TrainingError(Exit.BAD_CONFIG, f"the checkpoint {wanted} can't be resumed from: {problem}")
        resume_from, step = found.path, found.step
        if first and (problem := content_problem(found.path)):
            left_out = f"the {CHECKPOINT_DAMAGED.format(name=wanted)} ({problem}) and left out from now on"
            raise TrainingError(Exit.CRASH, left_out)
    log = PatientLog(EventLog(folder.path, "trainer", attempt=arguments.attempt))
    if not first:
        return Order(folder, arguments.attempt, config, log, resume_from, step, arguments.request)
    sweep_leftovers(folder)
    make_way = lambda: set_aside(folder, step, state)
    return Order(folder, arguments.attempt, config, log, resume_from, step, arguments.request, make_way)
