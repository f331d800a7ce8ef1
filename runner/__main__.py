"""`python -m runner --outputs DIR`: supervise until TERM or Ctrl-C; trainers go on without us."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path

from fluxcore.errors import UserError
from fluxcore.models.registry import use_outputs
from fluxcore.runs import RunError, check_outputs, default_outputs
from fluxcore.runs.installation import pause_queue, read_installation, request_shutdown
from fluxcore.runs.processes import Identity
from fluxcore.runs.supervision import RunnerInfo, runner_alive

from .alerts import Alerts, LocalSender
from .clock import SystemClock
from .executor import LocalExecutor
from .gpus import NvmlGpus
from .host import LocalHost
from .instance import AlreadyServed, Instance
from .loop import SHUTDOWN_GRACE_SECONDS, SLOW_POLL_SECONDS, Runner
from .serving import ASKED, Leaving, turn_until_done, unfinished
from .stacks import StackDump
from .wake import Wake

USAGE_EXIT = 64
INTERRUPTED_EXIT = 130
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
    outputs = use_outputs((options.outputs or default_outputs()).absolute())
    warnings.filterwarnings("ignore", module="watchdog")  # it writes pages of them when folders come quickly
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(message)s", level=logging.INFO)
    try:
        slots = cpu_slots()
        if not options.stop_all:  # it is needed most where the disk is full
            check_outputs(outputs)
        # Before anyone can know of this runner: who finds it may end it at once.
        leaving = catch_signals()
        if options.stop_all:
            return stop_all(outputs, slots, leaving)
        with Instance(outputs) as instance:
            serve(instance, slots, leaving)
    except UserError as error:
        print(f"fluxgym: {error}", file=sys.stderr)
        return USAGE_EXIT
    return 0


def stop_all(outputs: Path, slots: int, leaving: Leaving) -> int:
    """Have every live run stopped, reason `shutdown`: by the runner that serves, in the end by this process; exit code.

    The queue is paused first, so that nothing starts before a person asks. Then the runner is asked in the log and ends
    when it is done; after that, or where none is alive, this process serves until it sees that nothing lives any more.
    1 where that takes too long, 130 where a signal breaks it off.
    """
    deadline, asked = time.monotonic() + STOP_ALL_SECONDS, set()
    hold_queue(outputs)
    left: list[str] = []
    while (seconds := deadline - time.monotonic()) > 0 and not leaving.signals:
        other = runner_alive(outputs)
        if other is None:
            try:
                with Instance(outputs, ending=True) as instance:
                    left = serve(instance, slots, leaving, stop_all=True, seconds=seconds)
            except AlreadyServed:  # it has the lock, and is coming up or going
                time.sleep(0.05)
                continue
            if not left:
                print(
                    f"nothing of {outputs} lives any more; `./fluxgym queue resume` lets waiting runs start again, and "
                    "`./fluxgym resume NAME` then goes on with a stopped one"
                )
                return 0
            break
        if other.pid not in asked:
            asked.add(other.pid)
            ask_to_end(outputs, other)
        time.sleep(0.05)
    if leaving.signals:
        print("interrupted: what was asked to stop still does, `./fluxgym status` shows it", file=sys.stderr)
        return INTERRUPTED_EXIT
    what = ", ".join(left) or "some runs, `./fluxgym status` shows which"
    print(f"not stopped in {STOP_ALL_SECONDS:g} s in {outputs}: {what}", file=sys.stderr)
    return 1


def hold_queue(outputs: Path) -> None:
    """Pause the queue for --stop-all; where that can't be written the rest is done all the same."""
    try:
        if not read_installation(outputs).paused:
            pause_queue(outputs, "cli", "runner --stop-all")
    except (RunError, OSError) as error:
        print(f"the queue is not paused, the next runner will start what waits: {error}", file=sys.stderr)


def ask_to_end(outputs: Path, other: RunnerInfo) -> None:
    """Ask a runner to stop every run and to end. Where the disk is full: to end, its runs are stopped from here.

    Raises RunError where it is another user's.
    """
    identity = Identity(other.pid, other.create_time, other.boot_id, other.start_ticks)
    try:
        request_shutdown(outputs, identity)
    except RunError as error:
        try:
            os.kill(other.pid, signal.SIGTERM)
        except ProcessLookupError:  # it has ended just now
            pass
        except PermissionError:
            raise error from None


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


def serve(
    instance: Instance, slots: int, leaving: Leaving, *, stop_all: bool = False, seconds: float = float("inf")
) -> list[str]:
    """Turn the loop until a signal asks to leave, or all runs are stopped where that is asked for.

    At most `seconds`. Returns what may still live at the end, in words.
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
    if stop_all:
        runner.shut_down(ASKED)
    try:
        turn_until_done(
            runner,
            wake.wait,
            leaving,
            lambda: instance.is_asked_to_end(runner.installation),
            is_first=os.getpid() == 1,
            clock=time.monotonic,
            deadline=time.monotonic() + seconds,
        )
    finally:
        instance.withdraw()
        wake.stop()
        runner.leave()
        gpus.close()
        log.info("ended; %s", "no run lives" if runner.is_idle else "trainers go on")
    return unfinished(runner)


if __name__ == "__main__":
    sys.exit(main())
