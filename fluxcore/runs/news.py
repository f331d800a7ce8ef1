"""What of a run people are told of, as its log says: the events that are news, and whom they reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fluxcore.log import Event

if TYPE_CHECKING:
    from .fold import RunState

KIND_OF = {
    "run.completed": "completed",
    "run.failed": "failed",
    "run.stalled": "stalled",
    "run.started": "resumed",
    "run.stopped": "stopped",
    "disk.low": "disk",
    "request.refused": "failed",
}
"""The kind of news by type of event. Of starts and refusals the automatic ones count, of stops those that no person
asked for."""

KINDS = tuple(dict.fromkeys(KIND_OF.values()))
OUTCOMES = frozenset({"alert.sent", "alert.failed"})
NOTED = OUTCOMES | KIND_OF.keys()
RECENT = 16
"""So many news of a run are kept, the newest."""
_NOT_TOLD = frozenset({"tail", "argv"})


@dataclass
class News:
    """One event that people are told of. `tell`: the setting `alerts` of its attempt; `step`: how far the run was."""

    event: str
    kind: str
    ts: str
    tell: str
    attempt: int
    step: int
    total_steps: int
    data: dict[str, Any]
    settled: dict[str, str | None] = field(default_factory=dict)
    """Target → None once it was told, else why it could not be."""


def take_note(state: RunState, event: Event) -> None:
    """Keep an event that is news, or what became of one. Called after the event was folded in."""
    if event.type in OUTCOMES:
        for news in state.news:
            if news.event == event.data["event"]:
                error = str(event.data.get("error") or "") if event.type == "alert.failed" else None
                news.settled[str(event.data["name"])] = error
    elif event.type in KIND_OF and _counts(state, event) and all(news.event != event.id for news in state.news):
        attempt = state.attempt
        config = state.served_config(attempt) if attempt else state.config
        state.news.append(
            News(
                event=event.id,
                kind=KIND_OF[event.type],
                ts=event.ts,
                tell=str(config.get("alerts", "all")),
                attempt=attempt.number if attempt else 0,
                step=state.step,
                total_steps=state.total_steps,
                data={key: value for key, value in event.data.items() if key not in _NOT_TOLD},
            )
        )


def _counts(state: RunState, event: Event) -> bool:
    if event.type == "run.started":
        return state.attempt is not None and state.attempt.is_automatic
    if event.type == "request.refused":  # one that came too late is none: the run goes on
        return state.automatic_refused and not state.is_busy
    if event.type == "run.stopped":
        return event.data.get("reason") not in (None, "", "user")
    return True
