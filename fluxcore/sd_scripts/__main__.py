"""`python -m fluxcore.sd_scripts`: one attempt, from the command line that the runner writes. See trainer.py."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback

from fluxcore.errors import UserError
from fluxcore.runs.exits import FAILED
from fluxcore.training.failures import Exit, TrainingError


def main(argv: list[str] | None = None) -> int:
    """Run one attempt; returns the exit code (see fluxcore.training.failures.Exit), below 0 for a signal."""
    stop = {"requested": False}

    def on_term(number: int, frame: object) -> None:
        stop["requested"] = True

    signal.signal(signal.SIGTERM, on_term)
    from fluxcore.training.order import parse_arguments, take_order

    from .trainer import run

    arguments = parse_arguments("fluxcore.sd_scripts", argv)
    try:
        order = take_order(arguments)
        order.make_way()
        try:
            return run(order, lambda: stop["requested"])
        finally:
            order.log.drain(30)
    except UserError as error:
        code = error.code if isinstance(error, TrainingError) else Exit.BAD_CONFIG
        print(f"{FAILED}{error}", file=sys.stderr, flush=True)
        return code
    except OSError as error:
        traceback.print_exc()
        return Exit.DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else Exit.CRASH


def leave(code: int) -> None:
    """End with `code`, or by the signal that ended sd-scripts, so that the runner sees what happened to them."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Python resets handlers early: a TERM would change how it ended
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
