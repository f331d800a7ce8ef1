"""One incremental reader and fold per run and process, shared by every session: a tick costs what is new.

Pages read `LiveRun.state`, a copy that is never changed after it was published, so no page needs a lock.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import threading
import time
from array import array
from bisect import bisect_left
from collections import deque
from pathlib import Path

import numpy as np
import streamlit as st

from fluxcore.log import Event, FolderReader, number, parse_ts
from fluxcore.runs import RunFolder, RunState, default_outputs, list_run_folders, unreadable

log = logging.getLogger("fluxgym")

SMOOTHING = 0.95
REFRESH_SECONDS = 0.4
RECENT_SECONDS = 24 * 3600


class Curve:
    """The losses by step: raw, and an exponential mean without bias towards its start. A resume cuts what it redoes."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.losses = array("d")
        self.means = array("d")
        self._sums = array("d")
        self._weights = array("d")

    def add(self, step: int, loss: float) -> None:
        """Append one step."""
        if self.steps and step <= self.steps[-1]:
            keep = bisect_left(self.steps, step)
            for column in (self.steps, self.losses, self.means, self._sums, self._weights):
                del column[keep:]
        total, weight = (self._sums[-1], self._weights[-1]) if self.steps else (0.0, 0.0)
        if math.isfinite(loss):
            total, weight = SMOOTHING * total + (1 - SMOOTHING) * loss, SMOOTHING * weight + (1 - SMOOTHING)
        for column, value in (
            (self.losses, loss),
            (self.means, total / weight if weight else math.nan),
            (self._sums, total),
            (self._weights, weight),
        ):
            column.append(value)
        self.steps.append(step)

    def thinned(self, most: int = 600) -> dict[str, list[float | None]]:
        """At most about `most` points: the lowest and the highest loss of each stretch, so that no spike is lost."""
        steps, losses, means = np.array(self.steps), np.array(self.losses), np.array(self.means)
        if len(steps) > most:
            width = math.ceil(2 * len(steps) / most)
            whole = len(steps) // width * width
            stretches = losses[:whole].reshape(-1, width)
            starts = np.arange(0, whole, width)
            low = starts + np.argmin(np.where(np.isfinite(stretches), stretches, np.inf), axis=1)
            high = starts + np.argmax(np.where(np.isfinite(stretches), stretches, -np.inf), axis=1)
            chosen = np.unique(np.concatenate([low, high, np.arange(whole, len(steps)), [len(steps) - 1]]))
            steps, losses, means = steps[chosen], losses[chosen], means[chosen]
        return {"step": steps.tolist(), "loss": _finite(losses), "smoothed": _finite(means)}


def _finite(values: np.ndarray) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


class LiveRun:
    """A run as its log says, kept up to date."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.curve = Curve()
        self.state = RunState(folder.name)
        self.trouble = ""
        """Why the log can't be read now; "" where it can."""
        self._folded = RunState(folder.name)
        self._reader = FolderReader(folder.path)
        self._inode = _inode(folder)
        self._lock = threading.Lock()
        self._version = 0
        self._points: tuple[int, dict[str, list[float | None]]] | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    def refresh(self) -> None:
        """Fold in what is new and publish it. A log that can't be read leaves what was known, and says so."""
        with self._lock:
            if _inode(self.folder) != self._inode:  # the run was deleted and made anew
                self._begin_anew()
            try:
                events = self._reader.read_new()
            except OSError as error:
                if not self.trouble:
                    log.warning("%s", unreadable(self.name, error))
                self.trouble = str(unreadable(self.name, error))
                self._begin_anew()  # part of it may have been read
                return
            self.trouble = ""
            if events or self._reader.bad_lines != self._folded.bad_lines:
                for event in events:
                    self._take(event)
                self._folded.bad_lines = self._reader.bad_lines
                self._version += 1
                self.state = _published(self._folded)

    def _begin_anew(self) -> None:
        self._inode = _inode(self.folder)
        self._reader, self._folded, self.curve = FolderReader(self.folder.path), RunState(self.name), Curve()

    def _take(self, event: Event) -> None:
        self._folded.apply(event)
        if event.type == "train.step":
            step, loss = event.data.get("step"), number(event.data.get("loss"))
            if isinstance(step, int) and loss is not None:
                self.curve.add(step, loss)

    def points(self) -> dict[str, list[float | None]]:
        """The loss curve for a chart, thinned once for all sessions."""
        with self._lock:
            if self._points is None or self._points[0] != self._version:
                self._points = (self._version, self.curve.thinned())
            return self._points[1]

    @property
    def sort_key(self) -> tuple[bool, str]:
        """Live runs first, then the newest."""
        return self.state.is_live, self.state.started or self.state.created or ""


class LiveRuns:
    """All runs of an outputs folder."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self._runs: dict[str, LiveRun] = {}
        self._read = -math.inf
        self._lock = threading.Lock()

    def all(self) -> list[LiveRun]:
        """Every run, live ones first, then by time; read anew at most every 0.4 s however many sessions ask."""
        with self._lock:
            if time.monotonic() - self._read > REFRESH_SECONDS:
                folders = {folder.name: folder for folder in list_run_folders(self.outputs)}
                self._runs = {name: self._runs.get(name) or LiveRun(folder) for name, folder in folders.items()}
                for run in self._runs.values():
                    run.refresh()
                self._read = time.monotonic()
            return sorted(self._runs.values(), key=lambda run: run.sort_key, reverse=True)

    def get(self, name: str) -> LiveRun | None:
        """The run of that name, up to date; None where there is none."""
        self.all()
        return self._runs.get(name)

    def expire(self) -> None:
        """Read anew at the next call: something was just asked for."""
        self._read = -math.inf


@st.cache_resource(show_spinner=False)
def _shared(outputs: Path) -> LiveRuns:
    return LiveRuns(outputs)


def live_runs() -> LiveRuns:
    """The process's view of its outputs folder."""
    return _shared(default_outputs())


def is_recent(state: RunState, now: float) -> bool:
    """Whether a run ended within 24 hours before `now` (epoch seconds)."""
    return bool(state.ended) and not state.is_live and now - parse_ts(str(state.ended)).timestamp() < RECENT_SECONDS


def _published(state: RunState) -> RunState:
    shown = copy.copy(state)
    shown.recent_seconds = deque(state.recent_seconds, maxlen=state.recent_seconds.maxlen)
    shown.attempts, shown.samples, shown.requests = list(state.attempts), list(state.samples), list(state.requests)
    shown.checkpoints, shown.gpus, shown.configs = dict(state.checkpoints), dict(state.gpus), dict(state.configs)
    return shown


def _inode(folder: RunFolder) -> int | None:
    try:
        return os.stat(folder.events).st_ino
    except OSError:
        return None
