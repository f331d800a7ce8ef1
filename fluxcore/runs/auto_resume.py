"""When a run that ended is resumed by itself: capped, after real progress only, never where it would fail again."""

from __future__ import annotations

from datetime import UTC, datetime

from fluxcore.log import parse_ts

from .fold import RunState
from .records import Attempt

RESUMABLE_REASONS = frozenset({"crash", "killed", "oom_host", "lost"})
"""Failures that another try may get past; a wrong config, bad data, a diverged loss or a full disk is not one."""

MAX_AGE_SECONDS = 3600.0
"""A run that ended longer ago than this is left alone: nobody expects it to start again by itself."""

BACKOFF_SECONDS = 5.0
PAUSE = "a pause before the next attempt"
"""What an automatic request waits for until `not_before`."""


def auto_resume_follows(state: RunState, now: datetime | None = None) -> bool:
    """Whether the runner will ask for another attempt of this ended run. `now` is an aware datetime (default: now).

    The answer is final once `run.failed` is in the log, or `run.killed` after a `run.stalled`.
    """
    return not why_not_resumed(state, now)


def why_not_resumed(state: RunState, now: datetime | None = None) -> str:
    """Why the runner will not ask for another attempt, in words that follow "it is not resumed by itself:"; "" where it
    will. `now` is an aware datetime (default: now).
    """
    attempt = state.attempt
    if state.state not in ("stalled", "failed"):
        return "it did not fail or get stuck"
    if state.state == "failed" and state.reason not in RESUMABLE_REASONS:
        return f"another try would only fail in the same way ({state.reason or 'no reason is known'})"
    if attempt is None or attempt.outcome not in ("run.stalled", "run.failed"):
        return "none of its attempts has failed or got stuck"
    if state.resume_checkpoint is None:
        return "there is no checkpoint to go on from"
    if state.requests:
        return "it is asked for already"
    if state.stop_requested:
        return "it was asked to stop"
    if state.automatic_refused:
        return "its resume by itself was refused" + (f" ({state.refusal.rstrip('.')})" if state.refusal else "")
    allowed = int(state.served_config(attempt).get("auto_resume") or 0)
    if allowed <= 0:
        return "auto_resume is 0"
    if not has_progressed(state):
        return _no_progress(state, attempt)
    if automatic_attempts(state) >= allowed:
        times = "once" if allowed == 1 else f"{allowed} times"
        return f"that was done {times} since somebody last asked for it, and auto_resume allows no more"
    if ((now or datetime.now(UTC)) - parse_ts(attempt.ended or attempt.started)).total_seconds() >= MAX_AGE_SECONDS:
        return "it ended more than an hour ago"
    return ""


def _no_progress(state: RunState, attempt: Attempt) -> str:
    what = "got stuck" if attempt.outcome == "run.stalled" else "failed"
    begun = "resumed" if attempt.resume_from else "started"
    reached = max(attempt.last_step, attempt.resume_step or 0)
    again = any(before.last_step == reached for before in state.attempts[:-1])
    where = f"at step {reached} again" if again else f"at step {reached}, no further than before"
    return f"it was {begun} already and {what} {where}" if len(state.attempts) > 1 else f"it {what} where it began"


def automatic_attempts(state: RunState) -> int:
    """How many attempts the runner has asked for since a person last did."""
    count = 0
    for attempt in reversed(state.attempts):
        if not attempt.is_automatic:
            break
        count += 1
    return count


def not_before(state: RunState) -> float:
    """Epoch seconds before which the run's oldest request is not served: automatic ones wait, longer each time."""
    if not state.requests or not state.requests[0].is_automatic:
        return 0.0
    return parse_ts(state.requests[0].ts).timestamp() + BACKOFF_SECONDS * 2 ** min(automatic_attempts(state), 6)


def has_progressed(state: RunState) -> bool:
    """Whether the newest attempt got further: to a later checkpoint than its own start, or to a step none had reached.

    An attempt that fails where the one before failed is not tried a third time.
    """
    attempt = state.attempt
    if attempt is None:
        return False
    if (state.resume_step or 0) > (attempt.resume_step or 0):
        return True
    return attempt.last_step > max([before.last_step for before in state.attempts[:-1]] + [attempt.resume_step or 0])
