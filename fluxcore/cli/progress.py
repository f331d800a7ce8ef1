"""Drawing a run's progress: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from fluxcore.log import Event
from fluxcore.runs import RunState
from fluxcore.runs.transitions import notice_key
from fluxcore.units import duration

LINE_SECONDS = 20.0
TENTHS = 10


class ProgressView:
    """Shows one run's phase, step, ETA and loss on standard error while it is entered."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None
        self._task: Any = None
        self._said: tuple[str, str, int] = ("", "", -1)
        self._said_at = 0.0

    def __enter__(self) -> ProgressView:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=30),
                TaskProgressColumn(),
                TextColumn("{task.fields[detail]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._name, total=None, detail="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def see(self, event: Event, state: RunState) -> None:
        """Take one event: what happens once is said in a line of its own."""
        if event.type == "stall.suspected":
            self._line(f"{self._name}: no progress for a while ({event.data.get('verdict')}), watching")
        elif event.type in ("run.stalled", "run.failed"):
            what = event.data.get("verdict") or event.data.get("reason") or ""
            self._line(f"{self._name}: {event.type.removeprefix('run.')} at step {state.step} ({what})")
        elif event.type == "run.started" and len(state.attempts) > 1:
            self._line(f"{self._name}: attempt {len(state.attempts)} from step {state.step}")
        elif notice := state.notices.get(notice_key(event)):
            self._line(f"{self._name}: {notice}")

    def draw(self, state: RunState) -> None:
        """Show where the run is now."""
        done, total, detail = _where(state)
        if self._bar is not None:
            what = state.phase if state.state == "running" and state.phase else state.state
            self._bar.update(
                self._task, description=f"{self._name} · {what}", total=total, completed=done or 0, detail=detail
            )
            return
        phase = state.phase if state.state in ("running", "stopping") else ""  # else it was the attempt's before
        tenth = int(TENTHS * done / total) if done is not None and total else -1
        said, now = (state.state, phase, tenth), time.monotonic()
        # Samples and saves interrupt the training many times: only what moved on is worth a line.
        if (
            said[:2] != self._said[:2]
            and phase not in ("sample", "save")
            or now - self._said_at > LINE_SECONDS
            or (phase == self._said[1] == "train" and tenth > self._said[2])
        ):
            self._said, self._said_at = said, now
            share = f" {done:.0f}/{total:.0f}" if done is not None and total else ""
            self._line(f"{self._name}: {state.state} {phase}{share} {detail}".rstrip())

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def _where(state: RunState) -> tuple[float | None, float | None, str]:
    """Done, total and a few words: of the training once it has steps, else of the phase."""
    if (
        state.state in ("running", "stopping")
        and state.phase in ("train", "sample", "save", "export")
        and state.total_steps
    ):
        detail = [f"step {state.step}/{state.total_steps}"]
        if state.eta_seconds is not None:
            detail.append(f"{duration(state.eta_seconds)} left")
        if state.loss is not None:
            detail.append(f"loss {state.loss:.4f}")
        return float(state.step), float(state.total_steps), " · ".join(detail)
    if state.state == "queued":
        return None, None, state.waiting_for
    return state.phase_done, state.phase_total, ""
