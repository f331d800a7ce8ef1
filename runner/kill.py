"""Ending an attempt's whole process tree, and nothing else: CONT, TERM to the trainer, grace, KILL until none is left.

A state machine that is asked once a turn, so that the loop never waits for a process.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

from fluxcore.runs.files import RunFolder

from .executor import Executor, Record

LEFTOVER_SECONDS = 1.0
"""How long children may outlive their trainer before they are killed (a resource tracker ends by itself)."""

RECORD_SECONDS = 3.0
"""How long to wait, after the last process is gone, for the shim to write the exit down."""

GIVE_UP_SECONDS = 60.0
"""How long KILL is repeated; what survives it sits in the kernel (a dead network disk) and is named."""


@dataclass
class TreeKill:
    """One attempt's end. `why`: `stop`, `stall`, or `leftovers` (the trainer has ended by itself)."""

    why: str
    grace_seconds: float
    begun: float
    stage: str = "begin"
    stage_since: float = 0.0
    pids: list[int] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    """Those of `pids` that got a KILL."""
    outlived: bool = False
    """Whether the trainer ended in its grace, and only what it left behind had to be killed."""
    signals: list[str] = field(default_factory=list)
    survivors: list[int] = field(default_factory=list)
    reason: str = ""
    """Of a stop: why, also where the log could not take the request."""
    noted: bool = False
    """Whether monitor.log has its word of it (the log may have to be tried more than once)."""

    @property
    def used_kill(self) -> bool:
        """Whether TERM was not enough."""
        return "SIGKILL" in self.signals

    def turn(self, now: float, folder: RunFolder, record: Record, executor: Executor) -> bool:
        """Take the next step; True once nothing of the attempt lives any more (or can't be ended)."""
        if self.stage == "begin":
            self._begin(now, folder, record, executor)
        trainer_gone = record.exit is not None or not executor.alive(record.trainer)
        if self.stage == "grace":
            if trainer_gone:
                self.outlived = True
                self._enter("leftovers", now)
            elif now - self.stage_since >= self.grace_seconds:
                self._enter("kill", now)
        if self.stage == "leftovers":
            if not executor.tree(folder, record):
                self._enter("record", now)
            elif now - self.stage_since >= LEFTOVER_SECONDS:
                self._enter("kill", now)
        if self.stage == "kill":
            self._kill(now, folder, record, executor)
        if self.stage == "record":
            return record.exit is not None or not executor.alive(record.shim) or now - self.stage_since > RECORD_SECONDS
        return False

    def hurry(self, now: float, most: float) -> None:
        """Give the trainer `most` seconds from now at the most."""
        elapsed = now - (self.stage_since if self.stage == "grace" else now)
        self.grace_seconds = min(self.grace_seconds, elapsed + most)

    def event(self, now: float) -> dict[str, Any]:
        """What `run.killed` says of it."""
        return {
            "pids": sorted(set(self.pids)),
            "signals": self.signals,
            "seconds": round(now - self.begun, 3),
            "survivors": self.survivors,
        }

    def _enter(self, stage: str, now: float) -> None:
        self.stage, self.stage_since = stage, now

    def _begin(self, now: float, folder: RunFolder, record: Record, executor: Executor) -> None:
        if self.why == "leftovers":
            self._enter("leftovers", now)
            return
        # A stopped process would keep the TERM pending; the shim may have been stopped as well.
        for process in [*executor.tree(folder, record), *([record.shim] if record.shim else [])]:
            executor.signal(process, signal.SIGCONT)
        if record.trainer is not None and executor.signal(record.trainer, signal.SIGTERM):
            self.pids.append(record.trainer.pid)
            self.signals += ["SIGCONT", "SIGTERM"]
        self._enter("grace", now)

    def _kill(self, now: float, folder: RunFolder, record: Record, executor: Executor) -> None:
        left = executor.tree(folder, record)
        if not left:
            self.survivors = []
            self._enter("record", now)
            return
        for process in left:
            if executor.signal(process, signal.SIGKILL):
                self.pids.append(process.pid)
                self.killed.append(process.pid)
        if not self.used_kill:
            self.signals.append("SIGKILL")
        if now - self.stage_since > GIVE_UP_SECONDS:
            self.survivors = [process.pid for process in left]
            self._enter("record", now)
