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
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxcore.log import parse_ts
from fluxcore.runs import RunFolder, RunState, default_outputs
from fluxcore.runs.supervision import runner_alive
from studio.compacting import Compactor

if TYPE_CHECKING:
    import pyarrow as pa

    from fluxcore.history.engine import History

log = logging.getLogger("fluxgym")

REFRESH_SECONDS = 0.25
RECENT_SECONDS = 24 * 3600
CURVE_POINTS = 1000
SPARK_POINTS = 48
MOST_KEPT = 16


@dataclass(frozen=True)
class _Kept:
    version: int
    good_until: float
    value: Any


class LiveRun:
    """A run as its log says, kept up to date."""

    def __init__(self, folder: RunFolder, history: History) -> None:
        self.folder, self.name = folder, folder.name
        self.row: dict[str, Any] = {}
        """Its row of the `runs` view: all that a list needs."""
        self.version = 0
        """Another number whenever its log has changed."""
        self.trouble = ""
        """Why the log can't be read now; "" where it can."""
        self.is_busy = self.is_live = False
        """Whether something of it waits or lives; whether it is queued, starting, running or stopping."""
        self.ended_at: float | None = None
        """When it ended, in epoch seconds, where it does not live again."""
        self.sort_key: tuple[bool, datetime] = (False, datetime.min)
        """Live runs first, then the newest."""
        self.shape = 0
        """Another number when more has changed than numbers that move (see pulse.py)."""
        self._history = history
        self._state: RunState | None = None
        self._curves: dict[tuple[str, int], tuple[int, pa.Table]] = {}
        self._slow: dict[Hashable, _Kept] = {}

    @property
    def state(self) -> RunState:
        """Its folded state. That of a compacted run is read from its log when it is first asked for."""
        state = self._state
        if state is None:
            with self._history.held():
                state = self._state = self._read()
        return state

    @property
    def title(self) -> str:
        """What people call it: its title, else its name."""
        return str(self.row.get("title") or self.name)

    def _read(self) -> RunState:
        found = self._history.state(self.name)
        return _published(found) if found else RunState(self.name)

    def update(self, version: int, row: dict[str, Any]) -> None:
        """Take over what the history has read since; whoever calls it holds the history."""
        finished = self.name in self._history.compacted
        state = None if finished else self._read()
        self.version, self.row, self._state = version, row, state
        self.is_busy, self.is_live = bool(state and state.is_busy), bool(state and state.is_live)
        ended: datetime | None = row["ended"]
        self.ended_at = ended.replace(tzinfo=UTC).timestamp() if ended and not self.is_live else None
        self.sort_key = self.is_live, row["started"] or row["created"] or datetime.min
        self.shape = _shape(row, state)

    def curve(self, column: str = "loss", points: int = CURVE_POINTS) -> pa.Table:
        """`step_curve` of this run, thinned once for all sessions."""
        from fluxcore.history.charts import step_curve

        kept = self._curves.get((column, points))
        if kept is None or kept[0] != self.version:
            kept = (self.version, step_curve(self._history, self.name, column, points=points))
            self._curves[column, points] = kept
        return kept[1]

    def machine(self, window: float | None) -> tuple[pa.Table, pa.Table]:
        """`gpu_curves` and `host_curves` of the last `window` seconds that were sampled (None: all)."""
        from fluxcore.history.machine import gpu_curves, host_curves

        def read() -> tuple[pa.Table, pa.Table]:
            last = self.state.updated and parse_ts(self.state.updated).astimezone(UTC).replace(tzinfo=None)
            since = last - timedelta(seconds=window) if window and last else None
            return gpu_curves(self._history, self.name, since), host_curves(self._history, self.name, since)

        found: tuple[pa.Table, pa.Table] = self.kept(("machine", window), read)
        return found

    def kept(self, key: Hashable, read: Callable[[], Any]) -> Any:
        """What `read` gives, for all sessions: read anew when the log has changed, but never for more than a
        thirtieth of the time, however long it takes."""
        found = self._slow.pop(key, None)
        if found is None or (found.version != self.version and time.monotonic() > found.good_until):
            begun = time.monotonic()
            value = read()
            now = time.monotonic()
            found = _Kept(self.version, now + 30 * (now - begun), value)
        self._slow[key] = found
        while len(self._slow) > MOST_KEPT:
            self._slow.pop(next(iter(self._slow)), None)
        return found.value


class LiveRuns:
    """All runs of an outputs folder."""

    def __init__(self, outputs: Path) -> None:
        from fluxcore.history.engine import History

        self.outputs = outputs
        self.history = History(outputs)
        self._compactor = Compactor(outputs)
        self._runs: dict[str, LiveRun] = {}
        self._sorted: list[LiveRun] = []
        self._read = -math.inf
        self._lock = threading.Lock()

    def all(self) -> list[LiveRun]:
        """Every run, live ones first, then by time; read anew at most every 0.25 s however many sessions ask."""
        with self._lock:
            if time.monotonic() - self._read > REFRESH_SECONDS:
                self._refresh()
                self._read = time.monotonic()
            return self._sorted

    def get(self, name: str) -> LiveRun | None:
        """The run of that name, up to date; None where there is none."""
        self.all()
        return self._runs.get(name)

    def shape(self) -> int:
        """Another number when any run's shape is another, a run or the runner came or went."""
        runs = tuple((run.name, run.shape, run.trouble) for run in self.all())
        return hash((runs, runner_alive(self.outputs) is not None))

    def expire(self) -> None:
        """Read anew at the next call: something was just asked for."""
        self._read = -math.inf

    def _refresh(self) -> None:
        history = self.history
        history.refresh()
        with history.held():
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
        self._compactor.look(history)

    def _run(self, name: str) -> LiveRun:
        if name not in self._runs:
            self._runs[name] = LiveRun(RunFolder(self.outputs / name), self.history)
        return self._runs[name]


_views: dict[Path, LiveRuns] = {}
_making = threading.Lock()


def live_runs() -> LiveRuns:
    """The process's view of its outputs folder. Asked too often by a page to be kept by `st.cache_resource`."""
    outputs = default_outputs()
    view = _views.get(outputs)
    if view is None:
        with _making:
            view = _views.get(outputs) or _views.setdefault(outputs, LiveRuns(outputs))
    return view


def _shape(row: dict[str, Any], state: RunState | None) -> int:
    """Of what a page says of a run by more than a number. By its words: what stands in a log may be of any kind."""
    kept = ("state", "attempts", "title", "archived", "tags", "resume_step", "resume_checkpoint", "weights")
    said = [row.get(name) for name in kept]
    if state is not None:
        said += [state.note, state.refusal, state.notices]
    if state is not None and state.is_busy:
        said += [state.stop_requested, state.queue_position, state.waiting_for, state.is_coming, state.monitoring]
        said += [state.suspected is None, state.disk_low is None, sorted(state.wishes)]
    return hash(repr(said))


def is_recent(run: LiveRun, now: float) -> bool:
    """Whether a run ended within 24 hours before `now` (epoch seconds)."""
    return run.ended_at is not None and now - run.ended_at < RECENT_SECONDS


def _published(state: RunState) -> RunState:
    shown = copy.copy(state)
    shown.recent_seconds = deque(state.recent_seconds, maxlen=state.recent_seconds.maxlen)
    shown.attempts, shown.samples, shown.requests = list(state.attempts), list(state.samples), list(state.requests)
    shown.checkpoints, shown.gpus, shown.configs = dict(state.checkpoints), dict(state.gpus), dict(state.configs)
    shown.measured, shown.phase_seconds = list(state.measured), dict(state.phase_seconds)
    shown.notices = dict(state.notices)
    return shown
