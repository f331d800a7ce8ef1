"""Folding many `train.step` events at once: the same state as one after the other, at a hundredth of the time.

Only a reader of a million events needs it, and only that one needs numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .fold import RECENT_STEPS

if TYPE_CHECKING:
    from .fold import RunState

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StepColumns:
    """Consecutive `train.step` events by field. Everything finite; NaN stands for a value that is null or missing."""

    step: Floats
    total_steps: Floats
    epoch: Floats
    loss: Floats
    lr: Floats
    step_seconds: Floats
    images_per_second: Floats
    memory_gib: Floats

    def between(self, start: int, end: int) -> StepColumns:
        """The events from `start` up to, not including, `end`."""
        return StepColumns(**{name: column[start:end] for name, column in vars(self).items()})


def apply_steps(state: RunState, steps: StepColumns) -> None:
    """Fold them in; what `transitions._step` does to each. Sets neither `created` nor `updated`."""
    if not len(steps.step):
        return
    if state.state == "starting":
        state.state = "running"
    state.step = int(steps.step[-1])
    state.total_steps = _last_nonzero(steps.total_steps) or state.total_steps
    state.epoch = _last_nonzero(steps.epoch) or state.epoch
    state.loss, state.lr = _value(steps.loss), _value(steps.lr)
    known = steps.loss[~np.isnan(steps.loss)]
    if len(known):
        before = math.inf if state.best_loss is None else state.best_loss
        lowest = np.minimum.accumulate(known)
        new = known < np.concatenate([[before], np.minimum(lowest[:-1], before)])
        at = steps.step[~np.isnan(steps.loss)][new]
        state.lows.extend((int(step), loss) for step, loss in zip(at.tolist(), known[new].tolist(), strict=True))
        state.best_loss = min(before, float(lowest[-1]))
    seconds = steps.step_seconds[steps.step_seconds >= 0]
    state.recent_seconds.extend(seconds[-RECENT_STEPS:].tolist())
    if len(seconds):  # added one after the other, as the fold does: a sum in another order is another number
        state.stepping_seconds = float(np.cumsum(np.concatenate([[state.stepping_seconds], seconds]))[-1])
        state.timed_steps += len(seconds)
    state.images_per_second, state.memory_gib = _value(steps.images_per_second), _value(steps.memory_gib)
    if attempt := state.coming or state.live_attempt:
        nonzero = steps.step[steps.step != 0]
        attempt.first_step = attempt.first_step or int(nonzero[0] if len(nonzero) else 0)
        attempt.last_step = state.step


def _value(column: Floats) -> float | None:
    return None if np.isnan(column[-1]) else float(column[-1])


def _last_nonzero(column: Floats) -> int:
    known = column[~np.isnan(column) & (column != 0)]
    return int(known[-1]) if len(known) else 0
