"""When a training is stuck: pure functions from what is known of an attempt to a verdict with its evidence.

Progress is a finished step, a counted item of a phase, the start of a phase, a saved checkpoint or sample. A process
that merely lives, a log line or a busy GPU is no progress: a heartbeat survives a hang, a stuck collective spins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SUSPECT_SHARE = 0.5
"""A suspicion is shown after this share of a limit; it clears by itself."""

LONGEST_STEP_FACTOR = 5.0
MOST_STALL_SECONDS = 3.0
"""`no_progress` waits for 5 × the longest step of the attempt, at least stall_seconds, at most 3 × stall_seconds."""

PHASE_BUDGETS = {
    "": 2.0,  # before the first phase: imports, opening the GPU
    "download": 6.0,
    "load": 4.0,
    "cache": 3.0,
    "train": 2.0,  # before the first step: compilation, warm-up
    "sample": 3.0,
    "save": 4.0,
    "export": 4.0,
}
"""Budgets without progress outside of the stepping, in multiples of stall_seconds. An unknown phase has 4."""

UNKNOWN_PHASE_BUDGET = 4.0

IO_PHASES = frozenset({"download", "load", "cache", "save", "export"})
"""Phases whose items may be one huge file: bytes moved count as progress there."""

IO_PROGRESS_BYTES = 1 << 20


@dataclass(frozen=True)
class Window:
    """What is known of an attempt at one moment. Times in seconds on a clock that stands still while nobody watches.

    `gpu_idle_seconds`: for how long every reading of every GPU of the run has been 0%; None where one is not known,
    there is no reading, or a GPU was busy at the last one.
    """

    phase: str
    steps: int
    since_progress: float
    longest_step: float
    stall_seconds: float
    sample_seconds: float
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

    `gpu_idle`: stepping, and `stall_seconds` at 0% on all of the run's GPUs without progress.
    `no_progress`: stepping, and no step for the limit above at any utilisation; also a later phase over its budget.
    `silent`: nothing finished in a phase, before the first step, within the phase's budget.
    """
    stall = window.stall_seconds
    stepping = window.phase == "train" and window.steps > 0
    if stepping:
        verdict = "no_progress"
        limit = max(stall, min(LONGEST_STEP_FACTOR * window.longest_step, MOST_STALL_SECONDS * stall))
    else:
        verdict = "no_progress" if window.steps else "silent"
        limit = stall * PHASE_BUDGETS.get(window.phase, UNKNOWN_PHASE_BUDGET)

    if window.phase == "train" and window.gpu_idle_seconds is not None:
        idle = min(window.gpu_idle_seconds, window.since_progress)
        if idle >= stall:
            return _judgement("gpu_idle", True, stall, window)
        if idle >= stall - 2 * window.sample_seconds and window.since_progress >= SUSPECT_SHARE * stall:
            # The reading lags by up to two samples behind the step: let the more telling verdict ripen.
            return _judgement("gpu_idle", False, stall, window)
        if idle >= SUSPECT_SHARE * stall and window.since_progress < limit:
            return _judgement("gpu_idle", False, stall, window)
    if window.since_progress >= limit:
        return _judgement(verdict, True, limit, window)
    if window.since_progress >= SUSPECT_SHARE * limit:
        return _judgement(verdict, False, limit, window)
    return Judgement(None)


def _judgement(verdict: str, certain: bool, limit: float, window: Window) -> Judgement:
    evidence: dict[str, Any] = {
        "phase": window.phase,
        "steps": window.steps,
        "seconds_without_progress": round(window.since_progress, 1),
        "limit_seconds": round(limit, 1),
        "stall_seconds": window.stall_seconds,
        "longest_step_seconds": round(window.longest_step, 3),
        "gpu_idle_seconds": None if window.gpu_idle_seconds is None else round(window.gpu_idle_seconds, 1),
    }
    return Judgement(verdict, certain, limit, {**evidence, **window.details})
