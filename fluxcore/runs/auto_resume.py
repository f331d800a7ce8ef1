"""When a run that ended is resumed by itself: capped, after real progress only, never where it would fail again."""

from __future__ import annotations

from datetime import UTC, datetime

from fluxcore.log import parse_ts

from .fold import RunState

RESUMABLE_REASONS = frozenset({"crash", "killed", "oom_host", "lost"})
"""Failures that another try may get past; a wrong config, bad data, a diverged loss or a full disk is not one."""

MAX_AGE_SECONDS = 3600.0
"""A run that ended longer ago than this is left alone: nobody expects it to start again by itself."""


def auto_resume_follows(state: RunState, now: datetime | None = None) -> bool:
    """Whether the runner will ask for another attempt of this ended run. `now` is an aware datetime (default: now).

    The answer is final once `run.failed` is in the log, or `run.killed` after a `run.stalled`.
    """
    attempt = state.attempt
    if (
        attempt is None
        or attempt.outcome not in ("run.stalled", "run.failed")
        or state.state not in ("stalled", "failed")
    ):
        return False
    if state.state == "failed" and state.reason not in RESUMABLE_REASONS:
        return False
    if state.resume_checkpoint is None or state.requests or state.stop_requested or state.automatic_refused:
        return False
    age = ((now or datetime.now(UTC)) - parse_ts(attempt.ended or attempt.started)).total_seconds()
    allowed = int(state.served_config(attempt).get("auto_resume") or 0)
    return age < MAX_AGE_SECONDS and automatic_attempts(state) < allowed and has_progressed(state)


def automatic_attempts(state: RunState) -> int:
    """How many attempts the runner has asked for since a person last did."""
    count = 0
    for attempt in reversed(state.attempts):
        if not attempt.is_automatic:
            break
        count += 1
    return count


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
