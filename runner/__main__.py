"""`python -m runner --outputs DIR`: supervise until TERM or Ctrl-C; trainers go on without us."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from fluxcore.errors import UserError
from fluxcore.runs import check_outputs, default_outputs

from .alerts import Alerts, LocalSender
from .clock import SystemClock
from .executor import LocalExecutor
from .gpus import NvmlGpus
from .host import LocalHost
from .instance import Instance
from .loop import SLOW_POLL_SECONDS, Runner
from .wake import Wake

USAGE_EXIT = 64
BREATH_SECONDS = 0.25
"""Between two turns at the least while trainers alone write: a thousand steps a second must not turn it as often."""

log = logging.getLogger("runner")


class Parser(argparse.ArgumentParser):
    """argparse, with the exit code that the launcher promises for wrong usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(USAGE_EXIT)


def main(arguments: list[str] | None = None) -> int:
    """Serve one outputs folder; the exit code."""
    parser = Parser(prog="runner", description="The supervisor of an outputs folder, in the foreground.")
    parser.add_argument("--outputs", type=Path, default=None, help="folder of the runs (default: $FLUXGYM_OUTPUTS)")
    options = parser.parse_args(arguments)
    outputs = (options.outputs or default_outputs()).absolute()
    warnings.filterwarnings("ignore", module="watchdog")  # it writes pages of them when folders come quickly
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(message)s", level=logging.INFO)
    try:
        slots = cpu_slots()
        check_outputs(outputs)
        # Before anyone can know of this runner: who finds it may end it at once.
        leaving = catch_signals()
        with Instance(outputs) as instance:
            serve(instance, slots, leaving)
    except UserError as error:
        print(error, file=sys.stderr)
        return USAGE_EXIT
    return 0


def cpu_slots() -> int:
    """How many runs may train at once on a machine without GPUs: $FLUXGYM_CPU_SLOTS, default 1."""
    given = os.environ.get("FLUXGYM_CPU_SLOTS", "1")
    if not given.isdigit() or int(given) < 1:
        raise UserError(f"FLUXGYM_CPU_SLOTS must be a whole number from 1 on, not {given!r}")
    return int(given)


def catch_signals() -> Leaving:
    """From now on a TERM, Ctrl-C or hang-up asks the loop to leave instead of ending the process."""
    leaving = Leaving()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, leaving.ask)
    return leaving


class Leaving:
    """Whether a signal has asked to leave, and the bell that wakes the loop for it."""

    def __init__(self) -> None:
        self.asked = False
        self.ring: Callable[[], None] = lambda: None

    def ask(self, *_: object) -> None:
        """The signals' handler."""
        self.asked = True
        self.ring()


def serve(instance: Instance, slots: int, leaving: Leaving) -> None:
    """Turn the loop until a signal asks to leave."""
    outputs = instance.outputs
    wake = Wake(outputs)
    leaving.ring = wake.ring
    gpus, clock = NvmlGpus(), SystemClock()
    runner = Runner(
        outputs,
        executor=LocalExecutor(),
        gpus=gpus,
        host=LocalHost(),
        clock=clock,
        cpu_slots=slots,
        alerts=Alerts(outputs, LocalSender(), clock),
    )
    wake.start()
    if wake.works:
        runner.poll_seconds = SLOW_POLL_SECONDS
    log.info("serving %s (pid %d)", outputs, os.getpid())
    hints: set[str] = set()
    try:
        while not leaving.asked:
            begun = time.monotonic()
            due = runner.turn(hints)
            hints = wake.wait(due)
            while hints and not leaving.asked and runner.may_wait(hints):
                rest = begun + min(due, BREATH_SECONDS) - time.monotonic()
                if rest <= 0:
                    break
                hints |= wake.wait(rest)
    finally:
        instance.withdraw()
        wake.stop()
        runner.leave()
        gpus.close()
        log.info("ended; trainers go on")


if __name__ == "__main__":
    sys.exit(main())
