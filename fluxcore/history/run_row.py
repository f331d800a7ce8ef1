"""One run as one row: the `runs` view's columns out of the fold. No DuckDB here: `status` and the app use it too."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fluxcore.log import parse_ts
from fluxcore.runs import RunState, seconds_between
from fluxcore.runs.records import Attempt


def run_row(state: RunState) -> dict[str, Any]:
    """`state` as a row of the `runs` view, and its `note`, which the view has not: the app's list is searched by it.

    Times are naive datetimes in UTC, `seconds` is that of all attempts.
    """
    config = state.config
    return {
        "run": state.name,
        "title": state.title,
        "note": state.note,
        "state": state.state,
        "base_model": config.get("base_model"),
        "trigger": config.get("concept_sentence"),
        "created": timestamp(state.created),
        "started": timestamp(state.started),
        "ended": timestamp(state.ended),
        "seconds": total_seconds(state) if state.attempts else None,
        "step": state.step,
        "total_steps": state.total_steps or None,
        "epoch": state.epoch,
        "loss": state.loss,
        "best_loss": state.best_loss,
        "attempts": len(state.attempts),
        "stalls": state.stalls,
        "failures": state.failures,
        "reason": state.reason,
        "resume_checkpoint": state.resume_checkpoint,
        "resume_step": state.resume_step,
        "weights": state.weights,
        "tags": state.tags,
        "config": config,
    }


def timestamp(ts: str | None) -> datetime | None:
    """A log's `ts` as SQL has it: a naive datetime in UTC."""
    return parse_ts(ts).astimezone(UTC).replace(tzinfo=None) if ts else None


def total_seconds(state: RunState) -> float:
    """Seconds of all attempts together; a live one counts up to the run's last event."""
    return sum(_seconds(state, attempt) for attempt in state.attempts)


def _seconds(state: RunState, attempt: Attempt) -> float:
    if attempt.seconds is not None and attempt.seconds >= 0:
        return attempt.seconds
    return seconds_between(attempt.started, attempt.ended or state.updated) or 0.0
