"""When an attempt is stuck: a pure function from what was seen of it to a verdict with its evidence.

Progress is a finished step, a counted item of a phase, the start of a phase, a saved checkpoint or sample. A process
that merely lives, a log line or a busy GPU is no progress: a heartbeat survives a hang, a stuck collective spins.

While it steps, only progress counts. Elsewhere one item may be a file of 24 GB or a picture drawn on the processor for
half an hour: there a sign of life (processor, disk, memory, see `watch.py`) buys time, but not for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SUSPECT_SHARE = 0.5
"""A suspicion is shown after this share of a limit; it clears by itself."""

LONGEST_STEP_FACTOR = 5.0
MOST_STALL_SECONDS = 3.0
"""`no_progress` waits for 5 × the longest step of the attempt, at least stall_seconds, at most 3 × stall_seconds."""

FIRST_STEP = 2.0
"""The first step may take twice as long: compilation, warm-up. In multiples of stall_seconds, as all below."""

QUIET = 1.5
"""Outside of the stepping, without progress and without a sign of life."""

BUSY_SECONDS = 2.5 * 3600.0
"""Outside of the stepping, without progress, with signs of life, where nothing tells how long the phase takes."""

LONGEST_WAIT_FACTOR = 5.0
AGAIN_SECONDS = 1200.0
"""The same once the attempt steps and comes to the same phase again (samples, saves): 5 × its longest wait there, at
least twenty minutes."""

UNSEEN = 4.0
"""Where no process can be looked at and so no sign of life is known, and the least of the two above."""


@dataclass(frozen=True)
class Window:
    """What is known of an attempt at one moment. Times in seconds on a clock that stands still while nobody watches.

    `since_life`: since the last progress or sign of life; None where processes can't be looked at.
    `longest_wait`: the longest time without progress in an earlier round of this phase; None in its first.
    `gpu_idle_seconds`: for how long every reading of every GPU of the run has been 0%; None where one is not known,
    there is no reading, or a GPU was busy at the last one.
    """

    phase: str
    steps: int
    since_progress: float
    longest_step: float
    stall_seconds: float
    sample_seconds: float
    since_life: float | None = None
    longest_wait: float | None = None
    gpu_idle_seconds: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """`verdict` is what it looks like (None: all is well), `certain` whether its limit has been reached."""

    verdict: str | None
    certain: bool = False
    limit: float = 0.0
    evidence: dict[str, Any] = field(default_factory=dict)


def judge(window: Window) -> Judgement:
    """Whether the attempt is stuck.

    `gpu_idle`: in `train`, and `stall_seconds` at 0% on all of the run's GPUs without progress.
    `no_progress`: after the first step, at any utilisation.
    `silent`: before the first step.
    """
    stall = window.stall_seconds
    if window.phase == "train":
        if window.gpu_idle_seconds is not None:
            found = _judge_idle(window, min(window.gpu_idle_seconds, window.since_progress))
            if found is not None:
                return found
    elif window.since_life is not None:
        quiet = _judge_wait(window, window.since_life, QUIET * stall)
        if quiet.verdict is not None:
            return quiet
    return _judge_wait(window, window.since_progress, longest_limit(window))


def longest_limit(window: Window) -> float:
    """Seconds without progress after which an attempt is stuck whatever else is seen of it."""
    stall = window.stall_seconds
    if window.phase == "train":
        return _longest_between_steps(window) if window.steps else FIRST_STEP * stall
    at_least = UNSEEN * stall
    if window.since_life is None:
        return at_least
    if window.steps and window.longest_wait is not None:
        return max(at_least, AGAIN_SECONDS, LONGEST_WAIT_FACTOR * window.longest_wait)
    return max(at_least, BUSY_SECONDS)


def _longest_between_steps(window: Window) -> float:
    stall = window.stall_seconds
    return max(stall, min(LONGEST_STEP_FACTOR * window.longest_step, MOST_STALL_SECONDS * stall))


def _judge_wait(window: Window, waited: float, limit: float) -> Judgement:
    if waited < SUSPECT_SHARE * limit:
        return Judgement(None)
    return _judgement("no_progress" if window.steps else "silent", waited >= limit, limit, window)


def _judge_idle(window: Window, idle: float) -> Judgement | None:
    stall = window.stall_seconds
    if idle >= stall:
        return _judgement("gpu_idle", True, stall, window)
    # The reading lags behind the step: let the more telling verdict ripen for one more.
    lags = idle >= stall - window.sample_seconds and window.since_progress >= SUSPECT_SHARE * stall
    if lags or (idle >= SUSPECT_SHARE * stall and window.since_progress < _longest_between_steps(window)):
        return _judgement("gpu_idle", False, stall, window)
    return None


def _judgement(verdict: str, certain: bool, limit: float, window: Window) -> Judgement:
    evidence: dict[str, Any] = {
        "phase": window.phase,
        "steps": window.steps,
        "seconds_without_progress": round(window.since_progress, 1),
        "seconds_without_life": _rounded(window.since_life),
        "limit_seconds": round(limit, 1),
        "stall_seconds": window.stall_seconds,
        "longest_step_seconds": round(window.longest_step, 3),
        "longest_wait_seconds": _rounded(window.longest_wait),
        "gpu_idle_seconds": _rounded(window.gpu_idle_seconds),
    }
    return Judgement(verdict, certain, limit, {**evidence, **window.details})


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
