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
from fluxcore.runs.installation import request_shutdown
from fluxcore.runs.processes import Identity
from fluxcore.runs.supervision import runner_alive

from .alerts import Alerts, LocalSender
from .clock import SystemClock
from .executor import LocalExecutor
from .gpus import NvmlGpus
from .host import LocalHost
from .instance import AlreadyServed, Instance
from .loop import SHUTDOWN_GRACE_SECONDS, SLOW_POLL_SECONDS, Runner
from .stacks import StackDump
from .wake import Wake

USAGE_EXIT = 64
BREATH_SECONDS = 0.25
"""Between two turns at the least while trainers alone write: a thousand steps a second must not turn it as often."""

STOP_ALL_SECONDS = SHUTDOWN_GRACE_SECONDS + 30.0

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
    parser.add_argument(
        "--stop-all", action="store_true", help="stop every run at a checkpoint, and the runner too; then end"
    )
    options = parser.parse_args(arguments)
    outputs = (options.outputs or default_outputs()).absolute()
    warnings.filterwarnings("ignore", module="watchdog")  # it writes pages of them when folders come quickly
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(message)s", level=logging.INFO)
    try:
        slots = cpu_slots()
        check_outputs(outputs)
        # Before anyone can know of this runner: who finds it may end it at once.
        leaving = catch_signals()
        if options.stop_all:
            return stop_all(outputs, slots, leaving)
        with Instance(outputs) as instance:
            serve(instance, slots, leaving)
    except UserError as error:
        print(error, file=sys.stderr)
        return USAGE_EXIT
    return 0


def stop_all(outputs: Path, slots: int, leaving: Leaving) -> int:
    """Have every live run stopped, reason `shutdown`: by the runner that serves, in the end by this process; exit code.

    The runner is asked in the log and ends when it is done. Then, or where none is alive, this process serves until it
    sees that nothing lives any more. 1 where that takes too long.
    """
    begun, asked = time.monotonic(), set()
    while time.monotonic() - begun < STOP_ALL_SECONDS and not leaving.asked:
        other = runner_alive(outputs)
        if other is None:
            try:
                with Instance(outputs) as instance:
                    done = serve(instance, slots, leaving, stop_all=True, seconds=STOP_ALL_SECONDS)
            except AlreadyServed:  # it has the lock, and is coming up or going
                time.sleep(0.05)
                continue
            return 0 if done else 1
        if other.pid not in asked:
            asked.add(other.pid)
            request_shutdown(outputs, Identity(other.pid, other.create_time, other.boot_id, other.start_ticks))
        time.sleep(0.05)
    print(f"some runs of {outputs} could not be stopped in {STOP_ALL_SECONDS:g} s", file=sys.stderr)
    return 1


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


def serve(
    instance: Instance, slots: int, leaving: Leaving, *, stop_all: bool = False, seconds: float = float("inf")
) -> bool:
    """Turn the loop until a signal asks to leave, or all runs are stopped where that is asked for.

    At most `seconds`. Returns whether nothing of any run lives at the end.
    """
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
        dumper=StackDump,
    )
    gpus.start()
    wake.start()
    if wake.works:
        runner.poll_seconds = SLOW_POLL_SECONDS
    log.info("serving %s (pid %d)", outputs, os.getpid())
    hints: set[str] = set()
    deadline = time.monotonic() + seconds
    if stop_all:
        runner.shut_down()
    try:
        while time.monotonic() < deadline:
            if leaving.asked:
                if os.getpid() != 1 or runner.shutting_down:
                    break
                # When the first process of a container goes, the kernel kills all others: let them save before.
                leaving.asked = False
                runner.shut_down()
            begun = time.monotonic()
            due = runner.turn(hints)
            if instance.is_asked_to_end(runner.installation) and not runner.shutting_down:
                runner.shut_down()
                continue
            if runner.shutting_down and runner.is_idle:
                break
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
        log.info("ended; %s", "no run lives" if runner.is_idle else "trainers go on")
    return runner.is_idle


if __name__ == "__main__":
    sys.exit(main())
