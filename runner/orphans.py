"""Trainers whose run is gone: its folder was deleted, or another log took its name. They are ended.

Until nothing of them lives they hold their GPUs and their place, no run may take their name (their processes are told
by it), and the runner is not idle. There is no log that could say so, so the runner's own does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluxcore.runs import RunFolder
from fluxcore.runs.records import Attempt

from .executor import Record
from .kill import TreeKill
from .run import Run

if TYPE_CHECKING:
    from .loop import Runner

DELETED = "its folder was deleted, its trainer still lives"

log = logging.getLogger(__name__)


@dataclass
class Orphan:
    """One such attempt, on its way to its end."""

    folder: RunFolder
    record: Record
    gpus: list[str]
    kill: TreeKill

    @property
    def name(self) -> str:
        return self.folder.name

    former_name = ""
    """As a Run has it: among those that hold places (`waiting.py`) both are asked."""


def look(runner: Runner, missing: list[str]) -> None:
    """See to runs whose folder is not there any more (`missing`) and to those whose log was replaced."""
    for name in missing:
        run = runner.runs[name]
        live = run.live_record()
        if live is None or _has_moved(runner, run, live[0]) or not _lives(runner, live[1]):
            runner.runs.pop(name).close()
        elif runner.executor.output_is_deleted(live[1]):
            runner.runs.pop(name).close()
            _take(runner, run, live)
        elif not run.missing:  # a network disk may come back
            log.warning("%s: its folder is not there, but its trainer lives and keeps its place", name)
        run.missing = True
    for run in runner.runs.values():
        if run.left is None or not run.is_read:
            continue
        left, run.left = run.left, None
        if not run.knows(left[0]) and not _has_moved(runner, run, left[0]) and _lives(runner, left[1]):
            _take(runner, run, left)


def turn(runner: Runner) -> None:
    """Take the next step of each end."""
    now = runner.clock.monotonic()
    for orphan in list(runner.orphans):
        if orphan.kill.turn(now, orphan.folder, orphan.record, runner.executor):
            runner.orphans.remove(orphan)
            left = orphan.kill.survivors
            if left:
                log.error("%s: %s can't be ended, the system keeps them", orphan.name, left)
            else:
                log.warning("%s: nothing of it lives any more", orphan.name)


def _take(runner: Runner, run: Run, live: tuple[Attempt, Record, float]) -> None:
    attempt, record, grace = live
    if runner.executor.output_is_deleted(record):
        grace = 0.0  # it has nowhere to save to
    runner.executor.forget(run.folder, attempt.number)
    pid = record.trainer.pid if record.trainer else attempt.pid
    log.warning("%s: its folder was deleted or replaced while its trainer (pid %d) lives; ending that", run.name, pid)
    kill = TreeKill("stop", grace, runner.clock.monotonic())
    runner.orphans.append(Orphan(run.folder, record, list(attempt.gpus), kill))


def _lives(runner: Runner, record: Record) -> bool:
    return runner.executor.alive(record.trainer) or runner.executor.alive(record.shim)


def _has_moved(runner: Runner, run: Run, attempt: Attempt) -> bool:
    """Whether another folder holds the log that has this attempt: its own, renamed. Then that one goes on with it."""
    for other in runner.runs.values():
        if other is not run and other.holds_machine and other.knows(attempt):
            first = run.former_name or run.name
            other.former_name = first if first != other.name else ""  # it may have been renamed back
            if other.former_name:
                other.note(
                    f"this folder was called {first} when its trainer started, which still writes to that name; "
                    f"rename it back, or stop it and start it again",
                    "WARNING",
                )
            return True
    return False
