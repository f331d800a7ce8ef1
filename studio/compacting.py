"""Finished runs are compacted without anyone asking: in a process of its own, when enough of them lie about."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fluxcore.runs.files import PROJECT_ROOT

if TYPE_CHECKING:
    from fluxcore.history.engine import History

ENOUGH_RUNS = 20
"""Fewer are read from their logs in less time than a process takes to start."""
LOOK_SECONDS = 60.0
PAUSE_SECONDS = 600.0
"""Between two compactions, which also fail at most so often."""


def start_compaction(outputs: Path) -> subprocess.Popen[bytes]:
    """`./fluxgym compact` with the patience of a background job."""
    command = ["nice", "-n", "10", sys.executable, "-m", "fluxcore", "compact", "--outputs", str(outputs)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=PROJECT_ROOT)


class Compactor:
    """Starts a compaction of an outputs folder where one is worth its time."""

    def __init__(
        self,
        outputs: Path,
        clock: Callable[[], float] = time.monotonic,
        start: Callable[[Path], subprocess.Popen[bytes]] = start_compaction,
    ) -> None:
        self._outputs, self._clock, self._start = outputs, clock, start
        self._look_at = clock() + LOOK_SECONDS
        self._process: subprocess.Popen[bytes] | None = None

    def look(self, history: History) -> None:
        """Called after each refresh; looks once a minute."""
        now = self._clock()
        if now < self._look_at or (self._process is not None and self._process.poll() is None):
            return
        self._look_at = now + LOOK_SECONDS
        if len(history.uncompacted()) >= ENOUGH_RUNS:
            self._process = self._start(self._outputs)
            self._look_at = now + PAUSE_SECONDS
