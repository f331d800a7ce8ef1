"""`python -m fluxcore.training`: one attempt, from the command line that the runner writes. See train.py."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .train import Training


def main(argv: list[str] | None = None) -> int:
    """Run one attempt; returns the exit code (see failures.Exit)."""
    stop = {"requested": False}

    def on_term(number: int, frame: object) -> None:
        stop["requested"] = True

    signal.signal(signal.SIGTERM, on_term)
    from .order import parse_arguments

    arguments = parse_arguments("fluxcore.training", argv)
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
    from .order import take_order
    from .train import Training
    from .wishes import Wishes

    order = take_order(arguments)
    wishes = Wishes(order.folder.path, order.request)
    return Training(order.folder, order.config, order.log, order.resume_from, stopping, wishes.take)


if __name__ == "__main__":
    sys.exit(main())
