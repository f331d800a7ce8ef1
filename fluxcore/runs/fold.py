"""Folding a run's events into its state. One fold serves app, CLI, API, SQL and runner."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fluxcore.log import Event, parse_ts

from .news import NOTED, RECENT, News, take_note
from .records import LIVE_STATES, Attempt, Checkpoint, Measured, Request
from .transitions import TRANSITIONS

RECENT_STEPS = 50


@dataclass
class RunState:
    """What the log says of a run. Times are the log's `ts` strings; `state` is one of the contract's."""

    name: str
    state: str = "draft"
    title: str = ""
    tags: list[str] = field(default_factory=list)
    note: str = ""
    archived: bool = False
    published: dict[str, Any] | None = None
    """Where a LoRA of it stands on the Hub: the newest `run.published`, and its `ts`."""
    created: str | None = None
    started: str | None = None
    ended: str | None = None
    updated: str | None = None
    bad_lines: int = 0
    """How many lines of its log did not parse; whoever reads the log sets it."""

    config: dict[str, Any] = field(default_factory=dict)
    config_id: str = ""
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    served: set[str] = field(default_factory=set)
    spawning: dict[str, Any] | None = None
    """The runner's intent (data of `run.spawning`) that no `run.started` has followed yet."""
    intents: int = 0
    last_attempt: int = 0
    coming: Attempt | None = None
    """The intent's attempt, whose trainer speaks already; `run.started` takes over what it reached."""
    stop_requested: str | None = None
    """A stop. It outlives the attempt's end: only a person's next request takes it back."""
    stop_reason: str = ""
    """Why: `user`, or what made the runner ask (`disk_low`, `shutdown`). The first of several stops counts."""
    automatic_refused: bool = False
    """The runner's own request could not be served: it does not ask again before a person does."""
    monitoring: bool = True
    """The last switch counts, until a person asks for the run again or saves a config that switches it otherwise."""
    switched_ahead: bool = False
    """The last switch came while nothing ran: it is meant for what is asked for next."""
    queue_position: int | None = None
    waiting_for: str = ""
    refusal: str = ""
    """Why the last request was not served, in a sentence, until the next one."""

    attempts: list[Attempt] = field(default_factory=list)
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    loss: float | None = None
    best_loss: float | None = None
    lows: list[tuple[int, float]] = field(default_factory=list)
    """Each step whose loss was lower than all before it: what `best_loss` was there, for a resume that goes back."""
    lr: float | None = None
    images_per_second: float | None = None
    memory_gib: float | None = None
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    stepping_seconds: float = 0.0
    """Sum of the newest attempt's steps' seconds; `timed_steps` counts them."""
    timed_steps: int = 0
    phase: str = ""
    phase_done: float | None = None
    phase_total: float | None = None
    phase_unit: str = ""
    phase_started: str | None = None
    phase_seconds: dict[str, float] = field(default_factory=dict)
    """How long the newest attempt was in each phase that has ended, in the order in which they came first."""
    seconds_beside: float = 0.0
    """How long of that was since its first step and no training: samples, saves."""
    wishes: frozenset[str] = frozenset()
    """What a person asked the training for that it has not begun: "sample", "save"."""

    notices: dict[str, str] = field(default_factory=dict)
    """What the newest attempt does otherwise than asked for, in sentences; by their event, the newest of each kind."""

    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    """The loss on held-out pictures, by step; a resume takes back what lies beyond its start."""
    gpus: dict[str, dict[str, Any]] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=dict)
    suspected: dict[str, Any] | None = None
    disk_low: dict[str, Any] | None = None
    """The warning (data of `disk.low`) that no `disk.cleared` has followed in this attempt."""

    stalls: int = 0
    failures: int = 0
    reason: str = ""
    hint: str = ""
    tail: str = ""
    verdict: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    side_file: str | None = None
    """Where the whole of `evidence` and `tail` lies, if it was too long for the log (see `fluxcore/log/side.py`)."""
    resume_checkpoint: str | None = None
    resume_step: int | None = None
    weights: str | None = None
    news: deque[News] = field(default_factory=lambda: deque(maxlen=RECENT))
    """What people are told of, the newest last (see `fluxcore.alerts`)."""
    _before_request: tuple[str, str | None, str] = ("draft", None, "")

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def live_attempt(self) -> Attempt | None:
        """The attempt that has not ended, if any."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].outcome is None else None

    @property
    def is_live(self) -> bool:
        """Whether a new start or resume is refused: queued, starting, running or stopping."""
        return self.state in LIVE_STATES

    @property
    def must_be_killed(self) -> bool:
        """Whether a stalled attempt's processes have not been accounted for yet."""
        attempt = self.attempt
        return attempt is not None and attempt.outcome == "run.stalled" and attempt.killed is None

    @property
    def has_processes(self) -> bool:
        """Whether processes of the run live, or are about to, as far as the log says."""
        return self.live_attempt is not None or self.spawning is not None or self.must_be_killed

    @property
    def is_busy(self) -> bool:
        """Whether something of the run waits or lives: then nothing new is granted, and its folder stays."""
        return self.is_live or self.has_processes

    @property
    def is_coming(self) -> bool:
        """Whether an attempt is asked for that has not begun: steps and losses are of the one before."""
        return self.state == "queued" or (self.spawning is not None and self.coming is None)

    @property
    def coming_step(self) -> int | None:
        """The step from which the attempt that is asked for goes on, 0 for a fresh one; None where not known."""
        if self.spawning is not None:
            return int(self.spawning.get("resume_step") or 0)
        wanted = self.requests[0].resume_from if self.requests else None
        if not wanted:
            return 0
        if wanted in ("latest", self.resume_checkpoint):
            return self.resume_step
        saved = self.checkpoints.get(wanted)
        return saved.step if saved else None

    @property
    def mean_seconds_per_step(self) -> float | None:
        """Mean of all the newest attempt's steps' seconds, or None before the first."""
        return self.stepping_seconds / self.timed_steps if self.timed_steps else None

    @property
    def seconds_per_step(self) -> float | None:
        """Median of the recent steps' seconds, or None before the first."""
        ordered = sorted(self.recent_seconds)
        return ordered[len(ordered) // 2] if ordered else None

    @property
    def whole_seconds_per_step(self) -> float | None:
        """`seconds_per_step` and its share of the samples and saves between the steps."""
        pace = self.seconds_per_step
        return None if pace is None else pace + self.seconds_beside / self.timed_steps

    @property
    def seconds_around_steps(self) -> float | None:
        """Of an attempt that was completed: all that is neither a step nor comes between two. The start, loading, the
        caches, the first samples, the last files; not a download, which comes once. Else None."""
        attempt = self.attempt
        if not self.timed_steps or attempt is None or attempt.outcome != "run.completed" or attempt.ended is None:
            return None
        took = attempt.seconds or (parse_ts(attempt.ended) - parse_ts(attempt.started)).total_seconds()
        apart = self.stepping_seconds + self.seconds_beside + self.phase_seconds.get("download", 0.0)
        return max(0.0, took - apart)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until the last step at the recent pace, with samples and saves as often as until now; None where that
        can't be said."""
        pace = self.whole_seconds_per_step
        if pace is None or not self.total_steps or self.state not in ("running", "starting"):
            return None
        return pace * max(0, self.total_steps - self.step)

    def served_config(self, attempt: Attempt) -> dict[str, Any]:
        """The config that an attempt's request named."""
        return self.configs.get(attempt.config, self.config)

    def apply(self, event: Event) -> None:
        """Fold one event in. Unknown types change nothing but `updated`; wrong fields never raise."""
        if self.created is None:
            self.created = event.ts
        self.updated = event.ts
        handler = TRANSITIONS.get(event.type)
        try:
            if handler is not None:
                handler(self, event, event.data)
            if event.type in NOTED:
                take_note(self, event)
        except (KeyError, TypeError, ValueError, AttributeError):
            pass  # a malformed event of a known type says nothing


def fold(name: str, events: Iterable[Event]) -> RunState:
    """The state after `events`."""
    state = RunState(name)
    for event in events:
        state.apply(event)
    return state


def seconds_between(start: str | None, end: str | None) -> float | None:
    """Seconds from one `ts` to another, never negative (a clock may jump); None where one is missing."""
    if not start or not end:
        return None
    return max(0.0, (parse_ts(end) - parse_ts(start)).total_seconds())
