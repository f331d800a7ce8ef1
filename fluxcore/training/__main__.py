"""`python -m fluxcore.training`: one attempt, from the command line that the runner writes. See train.py."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .train import Training


def main(argv: list[str] | None = None) -> int:
    """Run one attempt; returns the exit code (see failures.Exit)."""
    parser = argparse.ArgumentParser(prog="python -m fluxcore.training")
    parser.add_argument("--outputs", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--request", help="the request that this attempt serves; default: the newest config")
    parser.add_argument("--resume-from", help="a state folder of the run")
    arguments = parser.parse_args(argv)

    stop = {"requested": False}

    def on_term(number: int, frame: object) -> None:
        stop["requested"] = True

    signal.signal(signal.SIGTERM, on_term)
    import fluxcore.models.loading  # noqa: F401  torch comes only now, after the signal is caught
    from fluxcore.runs.exits import FAILED

    from .failures import Exit, TrainingError, explain

    try:
        training = _prepare(arguments, lambda: stop["requested"])
        try:
            return int(training.run())
        finally:
            training.log.drain(30)
    except Exception as error:
        expected: TrainingError | None = explain(error)
        if expected is None:
            traceback.print_exc()
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return int(Exit.CRASH)
        if os.environ.get("FLUXGYM_DEBUG"):
            traceback.print_exc()
        print(f"{FAILED}{expected}", file=sys.stderr, flush=True)
        return int(expected.code)


def _prepare(arguments: argparse.Namespace, stopping: Callable[[], bool]) -> Training:
    """Read the run's log, set aside what lies beyond the resume point, and build the attempt."""
    from fluxcore.config import parse_saved
    from fluxcore.log import EventLog, PatientLog
    from fluxcore.runs import find_state, load_run
    from fluxcore.runs.checkpoints import set_aside
    from fluxcore.runs.retention import sweep_leftovers

    from .failures import Exit, TrainingError
    from .train import Training

    folder, state = load_run(arguments.outputs.absolute(), arguments.run)
    attempt = next((a for a in state.attempts if a.number == arguments.attempt), None)
    request = next((r for r in state.requests if r.id == arguments.request), None)
    config_id = attempt.config if attempt else request.config if request else state.config_id
    config = parse_saved(state.configs.get(config_id, state.config))
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
    log = PatientLog(EventLog(folder.path, "trainer", attempt=arguments.attempt))
    sweep_leftovers(folder)
    set_aside(folder, step, state)
    return Training(folder, config, log, resume_from, stopping)


if __name__ == "__main__":
    sys.exit(main())
