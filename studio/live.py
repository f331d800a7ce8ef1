"""What all sessions share: one history of all runs per server process, read by offset: a tick costs what is new.

Pages read `LiveRun.state`, a copy that is never changed after it was published, so no page needs a lock.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from fluxcore.log import parse_ts
from fluxcore.runs import RunFolder, RunState, default_outputs

if TYPE_CHECKING:
    import pyarrow as pa

    from fluxcore.history.engine import History

log = logging.getLogger("fluxgym")

REFRESH_SECONDS = 0.4
RECENT_SECONDS = 24 * 3600
CURVE_POINTS = 1000
SPARK_POINTS = 48


@dataclass(frozen=True)
class _Machine:
    version: int
    good_until: float
    gpu: pa.Table
    host: pa.Table


class LiveRun:
    """A run as its log says, kept up to date."""

    def __init__(self, folder: RunFolder, history: History) -> None:
        self.folder = folder
        self.row: dict[str, Any] = {}
        """Its row of the `runs` view: all that a list needs."""
        self.version = 0
        """Another number whenever its log has changed."""
        self.trouble = ""
        """Why the log can't be read now; "" where it can."""
        self._history = history
        self._state: RunState | None = None
        self._curves: dict[tuple[str, int], tuple[int, pa.Table]] = {}
        self._machine: dict[float | None, _Machine] = {}

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def state(self) -> RunState:
        """Its folded state. That of a compacted run is read from its log when it is first asked for."""
        if self._state is None:
            with self._history.ready(steps_only=True):
                found = self._history.state(self.name)
                self._state = _published(found) if found else RunState(self.name)
        return self._state

    @property
    def is_busy(self) -> bool:
        """Whether something of it waits or lives; no log is read for that."""
        return self.name not in self._history.compacted and self.state.is_busy

    @property
    def is_live(self) -> bool:
        """Whether it is queued, starting, running or stopping; no log is read for that."""
        return self.name not in self._history.compacted and self.state.is_live

    @property
    def sort_key(self) -> tuple[bool, datetime]:
        """Live runs first, then the newest."""
        return self.is_live, self.row.get("started") or self.row.get("created") or datetime.min

    def update(self, version: int, row: dict[str, Any]) -> None:
        """Take over what the history has read since; whoever calls it holds the history."""
        self.version, self.row, self._state = version, row, None
        if self.name not in self._history.compacted:
            _ = self.state

    def curve(self, column: str = "loss", points: int = CURVE_POINTS) -> pa.Table:
        """`step_curve` of this run, thinned once for all sessions."""
        from fluxcore.history.charts import step_curve

        kept = self._curves.get((column, points))
        if kept is None or kept[0] != self.version:
            kept = (self.version, step_curve(self._history, self.name, column, points=points))
            self._curves[column, points] = kept
        return kept[1]

    def machine(self, window: float | None) -> tuple[pa.Table, pa.Table]:
        """`gpu_curves` and `host_curves` of the last `window` seconds that were sampled (None: all), for all sessions.

        What takes long to read is not read at every tick.
        """
        from fluxcore.history.machine import gpu_curves, host_curves

        kept = self._machine.get(window)
        if kept is None or kept.version != self.version and time.monotonic() > kept.good_until:
            begun = time.monotonic()
            last = parse_ts(self.state.updated).astimezone(UTC).replace(tzinfo=None) if self.state.updated else None
            since = last - timedelta(seconds=window) if window and last else None
            gpu, host = gpu_curves(self._history, self.name, since), host_curves(self._history, self.name, since)
            took = time.monotonic() - begun
            kept = _Machine(self.version, time.monotonic() + max(1.0, 30 * took), gpu, host)
            self._machine[window] = kept
        return kept.gpu, kept.host


class LiveRuns:
    """All runs of an outputs folder."""

    def __init__(self, outputs: Path) -> None:
        from fluxcore.history.engine import History

        self.outputs = outputs
        self.history = History(outputs)
        self._runs: dict[str, LiveRun] = {}
        self._sorted: list[LiveRun] = []
        self._read = -math.inf
        self._lock = threading.Lock()

    def all(self) -> list[LiveRun]:
        """Every run, live ones first, then by time; read anew at most every 0.4 s however many sessions ask."""
        with self._lock:
            if time.monotonic() - self._read > REFRESH_SECONDS:
                self._refresh()
                self._read = time.monotonic()
            return self._sorted

    def get(self, name: str) -> LiveRun | None:
        """The run of that name, up to date; None where there is none."""
        self.all()
        return self._runs.get(name)

    def expire(self) -> None:
        """Read anew at the next call: something was just asked for."""
        self._read = -math.inf

    def _refresh(self) -> None:
        history = self.history
        history.refresh()
        with history.ready(steps_only=True):
            rows, troubles = history.rows, history.unreadable
            changed = self._runs.keys() != rows.keys() | troubles.keys()
            for name in [name for name in self._runs if name not in rows and name not in troubles]:
                del self._runs[name]
            for name, version in history.versions.items():
                run = self._run(name)
                if run.version != version:
                    run.update(version, rows[name])
                    changed = True
                run.trouble = ""
            for name, trouble in troubles.items():
                run = self._run(name)
                if not run.trouble:
                    log.warning("%s", trouble)
                run.trouble = trouble
        if changed:
            self._sorted = sorted(self._runs.values(), key=lambda run: run.sort_key, reverse=True)

    def _run(self, name: str) -> LiveRun:
        if name not in self._runs:
            self._runs[name] = LiveRun(RunFolder(self.outputs / name), self.history)
        return self._runs[name]


@st.cache_resource(show_spinner=False)
def _shared(outputs: Path) -> LiveRuns:
    return LiveRuns(outputs)


def live_runs() -> LiveRuns:
    """The process's view of its outputs folder."""
    return _shared(default_outputs())


def is_recent(run: LiveRun, now: float) -> bool:
    """Whether a run ended within 24 hours before `now` (epoch seconds)."""
    ended: datetime | None = run.row.get("ended")
    return ended is not None and now - ended.replace(tzinfo=UTC).timestamp() < RECENT_SECONDS and not run.is_live


def _published(state: RunState) -> RunState:
    shown = copy.copy(state)
    shown.recent_seconds = deque(state.recent_seconds, maxlen=state.recent_seconds.maxlen)
    shown.attempts, shown.samples, shown.requests = list(state.attempts), list(state.samples), list(state.requests)
    shown.checkpoints, shown.gpus, shown.configs = dict(state.checkpoints), dict(state.gpus), dict(state.configs)
    return shown
