"""Where a stuck trainer stands: py-spy's dump of its threads and its children's, in a child that the loop polls.

First with native frames, which show a stuck CUDA call or lock and for which py-spy has to hold the process; where that
can't be done (a stopped process, one that sleeps in the kernel) without them, which only reads its memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fluxcore.runs import RunFolder

DUMP_SECONDS = 5.0
"""How long all of it may take; a stalled trainer is not kept waiting for its end any longer."""

NATIVE_SECONDS = 3.0
WAYS = (("--native", "--subprocesses"), ("--nonblocking", "--subprocesses"), ("--nonblocking",))
MOST_BYTES = 1 << 20


class Dump(Protocol):
    """A dump under way. `path`: where it lies in the run's folder, once done; else `problem` says why there is none."""

    path: str | None
    problem: str

    def done(self, now: float) -> bool:
        """Whether it has ended, in one way or the other. `now`: monotonic seconds."""

    def drop(self) -> None:
        """End it."""


Dumper = Callable[[RunFolder, int, int, float], Dump]
"""Begins the dump of a process: run's folder, attempt, pid, now."""


class StackDump:
    """py-spy at work on one process. Never raises; never waits."""

    def __init__(self, folder: RunFolder, attempt: int, pid: int, now: float, *, tool: str | None = None) -> None:
        self.path: str | None = None
        self.problem = ""
        self._folder, self._pid, self._begun = folder, pid, now
        self._final = folder.stacks(attempt)
        self._aside = self._final.with_suffix(".tmp")
        self._tool = tool or find_tool()
        self._ways = list(WAYS)
        self._child: subprocess.Popen[bytes] | None = None
        if self._tool is None:
            self.problem = "py-spy is not installed"
        else:
            self._next(now)

    def done(self, now: float) -> bool:
        """Go on with the dump; True once there are stacks, or a `problem` says why not."""
        while self._child is not None:
            late = now - self._way_begun > NATIVE_SECONDS or now - self._begun > DUMP_SECONDS
            code = self._child.poll()
            if code is None and not late:
                return False
            said = self._said()
            # Of a child that is no Python it complains after what it has said of the others, and that is good.
            stacks = said.partition("\nError: ")[0].rstrip("-\n")
            if code is not None and stacks.startswith("Process ") and "\nThread " in stacks:
                self._keep(stacks)
            else:
                self.problem = _why(said) if code is not None else "py-spy got no answer from the process"
                self.drop()
                if now - self._begun <= DUMP_SECONDS:
                    self._next(now)
        return True

    def drop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.poll()  # one that sleeps in the kernel is reaped when the next child is made
            self._child = None
        try:
            self._aside.unlink(missing_ok=True)
        except OSError:
            pass

    def _next(self, now: float) -> None:
        if not self._ways:
            return
        way, self._way_begun = self._ways.pop(0), now
        command = [str(self._tool), "dump", *way, "--pid", str(self._pid)]
        try:
            self._aside.parent.mkdir(parents=True, exist_ok=True)
            with open(self._aside, "wb") as file:
                self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd="/")
        except OSError as error:
            self.problem, self._ways = str(error), []

    def _keep(self, stacks: str) -> None:
        self._child = None
        try:
            self._aside.write_text(stacks + "\n")
            os.replace(self._aside, self._final)
            self.path, self.problem = self._folder.relative(self._final), ""
        except OSError as error:
            self.problem = str(error)

    def _said(self) -> str:
        try:
            with open(self._aside, "rb") as file:
                return file.read(MOST_BYTES).decode(errors="replace")
        except OSError:
            return ""


def find_tool() -> str | None:
    """py-spy beside this Python, or on the PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.is_file() else shutil.which("py-spy")


def _why(said: str) -> str:
    """py-spy's complaint in a sentence."""
    lowered = said.lower()
    if "permission denied" in lowered or "operation not permitted" in lowered:
        return "py-spy may not look into the process (the machine restricts ptrace; a container needs SYS_PTRACE)"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"py-spy could not read the process ({lines[0] if lines else 'it said nothing'})"
