"""`python -m fluxcore.training`: one attempt, from the command line that the runner writes. See train.py."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from .ranks import Ranks
    from .train import Training


def main(argv: list[str] | None = None) -> int:
    """Run one attempt; returns the exit code (see failures.Exit)."""
    stop = {"requested": False}

    def on_term(number: int, frame: object) -> None:
        stop["requested"] = True

    signal.signal(signal.SIGTERM, on_term)
    from .launch import PEER_LOST, follow_launcher, is_rank, launch
    from .order import parse_arguments, wanted_processes
    from .threads import choose_waiting

    argv = sys.argv[1:] if argv is None else argv
    arguments = parse_arguments("fluxcore.training", argv)
    several = is_rank()
    if several:
        follow_launcher()
    elif (processes := wanted_processes(arguments)) > 1:
        return launch([sys.executable, "-m", "fluxcore.training", *argv], processes)
    else:
        choose_waiting()
    import fluxcore.models.loading  # noqa: F401  torch comes only now, after the signal is caught
    from fluxcore.runs.exits import FAILED

    from .failures import Exit, TrainingError, explain
    from .ranks import Ranks, lost_a_peer

    ranks = Ranks()
    try:
        ranks = Ranks.join() if several else ranks
        training = _prepare(arguments, lambda: stop["requested"], ranks)
        gc.freeze()  # the libraries stay: while it trains nothing looks through them either
        gc.enable()
        try:
            ended = int(training.run())
            ranks.leave()
            return ended
        finally:
            training.log.drain(30)
    except Exception as error:
        if several and lost_a_peer(error):
            why = str(error).strip().splitlines()[:1]
            print(f"process {ranks.rank} ends, for it lost another one {why}", file=sys.stderr, flush=True)
            return PEER_LOST
        expected: TrainingError | None = explain(error)
        if expected is None:
            if ranks.fails_first():
                traceback.print_exc()
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return int(Exit.CRASH)
        if os.environ.get("FLUXGYM_DEBUG"):
            traceback.print_exc()
        if ranks.fails_first():  # else another process has said the same
            if expected.code == Exit.OOM_GPU:  # PyTorch's own words: who else holds how much of the GPU
                print(expected.__cause__ or error, file=sys.stderr, flush=True)
            print(f"{FAILED}{expected}", file=sys.stderr, flush=True)
        return int(expected.code)


def _prepare(arguments: argparse.Namespace, stopping: Callable[[], bool], ranks: Ranks) -> Training:
    """Read the run's log and build the attempt."""
    from .order import take_order
    from .ranks import Silence
    from .train import Training
    from .wishes import Wishes

    order = take_order(arguments, ranks.first)
    if not ranks.first:
        return Training(order.folder, order.config, Silence(), order.resume_from, stopping, ranks=ranks)
    wishes = Wishes(order.folder.path, order.request)
    return Training(
        order.folder, order.config, order.log, order.resume_from, stopping, wishes.take, ranks, make_way=order.make_way
    )


def leave(code: int) -> NoReturn:
    """End with `code`, whatever comes now.

    What is registered for the end is done; Python's clearing of its memory is left to the system: it takes more than a
    second. It would take the handlers of signals away first, so that a TERM ended what is done as what was stopped.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    gc.disable()  # a fourth of the imports' time would go to looking through what they have made
    leave(main())
