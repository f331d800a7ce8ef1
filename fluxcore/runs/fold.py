"""Folding a run's events into its state. One fold serves app, CLI, API, SQL and runner."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fluxcore.log import Event, number, parse_ts

LIVE_STATES = frozenset({"queued", "starting", "running", "stopping"})
"""States in which a new start or resume is refused."""

ENDED_STATES = frozenset({"stalled", "stopped", "failed", "completed"})

RECENT_STEPS = 50


@dataclass
class Request:
    """A `run.requested` that no attempt has served and no event has refused."""

    id: str
    config: str
    resume_from: str | None
    reason: str
    ts: str

    @property
    def is_automatic(self) -> bool:
        """Whether the runner asked, not a person."""
        return self.id.startswith("runner-")


@dataclass
class Attempt:
    """One trainer process, from `run.started` to its end. `outcome` is the type of the event that ended it."""

    number: int
    request: str
    started: str
    pid: int = 0
    create_time: float = 0.0
    boot_id: str = ""
    start_ticks: int = 0
    shim_pid: int = 0
    gpus: list[str] = field(default_factory=list)
    resume_from: str | None = None
    resume_step: int | None = None
    config: str = ""
    first_step: int | None = None
    last_step: int = 0
    ended: str | None = None
    outcome: str | None = None
    killed: str | None = None

    @property
    def is_automatic(self) -> bool:
        """Whether the runner asked for it, not a person."""
        return self.request.startswith("runner-")


@dataclass
class Checkpoint:
    """A checkpoint as the log knows it; whether it is still there and whole is for `checkpoints.py` to say."""

    path: str
    kind: str
    step: int
    epoch: int
    bytes: int
    attempt: int
    ts: str


@dataclass
class RunState:
    """What the log says of a run. Times are the log's `ts` strings; `state` is one of the contract's."""

    name: str
    state: str = "draft"
    title: str = ""
    tags: list[str] = field(default_factory=list)
    note: str = ""
    archived: bool = False
    created: str | None = None
    started: str | None = None
    ended: str | None = None
    updated: str | None = None

    config: dict[str, Any] = field(default_factory=dict)
    config_id: str = ""
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    served: set[str] = field(default_factory=set)
    spawning: dict[str, Any] | None = None
    """The runner's intent (data of `run.spawning`) that no `run.started` has followed yet."""
    intents: int = 0
    last_attempt: int = 0
    stop_requested: str | None = None
    """A person's stop. It outlives the attempt's end: only a person's next request takes it back."""
    monitoring: bool = True
    """The last switch counts, until a person asks for the run again or saves a config that switches it otherwise."""
    queue_position: int | None = None
    waiting_for: str = ""

    attempts: list[Attempt] = field(default_factory=list)
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    loss: float | None = None
    best_loss: float | None = None
    lr: float | None = None
    images_per_second: float | None = None
    memory_gib: float | None = None
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    phase: str = ""
    phase_done: float | None = None
    phase_total: float | None = None
    phase_unit: str = ""
    phase_started: str | None = None

    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    gpus: dict[str, dict[str, Any]] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=dict)
    suspected: dict[str, Any] | None = None

    stalls: int = 0
    failures: int = 0
    reason: str = ""
    hint: str = ""
    tail: str = ""
    verdict: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    resume_checkpoint: str | None = None
    resume_step: int | None = None
    weights: str | None = None
    _before_request: tuple[str, str | None] = ("draft", None)

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
    def seconds_per_step(self) -> float | None:
        """Median of the recent steps' seconds, or None before the first."""
        ordered = sorted(self.recent_seconds)
        return ordered[len(ordered) // 2] if ordered else None

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until the last step at the recent pace; None where that can't be said."""
        pace = self.seconds_per_step
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
        handler = _HANDLERS.get(event.type)
        if handler is not None:
            try:
                handler(self, event, event.data)
            except (KeyError, TypeError, ValueError, AttributeError):
                pass  # a malformed event of a known type says nothing


def fold(name: str, events: Iterable[Event]) -> RunState:
    """The state after `events`."""
    state = RunState(name)
    for event in events:
        state.apply(event)
    return state


def _config_saved(state: RunState, event: Event, data: dict[str, Any]) -> None:
    before, state.config, state.config_id = state.config, dict(data["config"]), event.id
    state.configs[event.id] = state.config
    if not state.is_live and (not before or _monitored(before) != _monitored(state.config)):
        state.monitoring = _monitored(state.config)


def _monitored(config: dict[str, Any]) -> bool:
    return bool(config.get("enable_monitoring", True))


def _requested(state: RunState, event: Event, data: dict[str, Any]) -> None:
    if event.id in state.served:
        return
    config = str(data.get("config") or state.config_id)
    request = Request(event.id, config, data.get("resume_from"), str(data.get("reason") or ""), event.ts)
    state.requests.append(request)
    if not state.is_live and state.live_attempt is None:
        state._before_request = state.state, state.stop_requested
        state.state = "queued"
        if not request.is_automatic:
            state.stop_requested = None
            state.monitoring = _monitored(state.configs.get(config, state.config))
        state.queue_position, state.waiting_for = None, ""


def _refused(state: RunState, event: Event, data: dict[str, Any]) -> None:
    _settle(state, data.get("request"))
    if state.spawning and state.spawning.get("request") == data.get("request"):
        state.spawning = None
    if state.state in ("queued", "starting") and not state.requests and state.live_attempt is None:
        state.state, stop = state._before_request
        state.stop_requested = state.stop_requested or stop


def _settle(state: RunState, request_id: Any) -> Request | None:
    """Take a request off the list; it is answered, whatever order its events come in."""
    state.served.add(str(request_id))
    found = next((request for request in state.requests if request.id == request_id), None)
    state.requests = [request for request in state.requests if request.id != request_id]
    return found


def _queued(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.queue_position, state.waiting_for = data.get("position"), str(data.get("waiting_for") or "")


def _spawning(state: RunState, event: Event, data: dict[str, Any]) -> None:
    again = state.spawning is not None and state.spawning.get("request") == data.get("request")
    state.intents = state.intents + 1 if again else 1
    state.spawning = {**data, "ts": event.ts}
    state.last_attempt = max(state.last_attempt, int(data["attempt"]))
    if state.state == "queued":
        state.state = "starting"


def _started(state: RunState, event: Event, data: dict[str, Any]) -> None:
    request = _settle(state, data.get("request"))
    config = str(data.get("config") or (request.config if request else state.config_id))
    attempt = Attempt(
        number=event.attempt or len(state.attempts) + 1,
        request=str(data.get("request") or ""),
        started=event.ts,
        pid=int(data.get("pid") or 0),
        create_time=float(data.get("create_time") or 0),
        boot_id=str(data.get("boot_id") or ""),
        start_ticks=int(data.get("start_ticks") or 0),
        shim_pid=int(data.get("shim_pid") or 0),
        gpus=list(data.get("gpus") or []),
        resume_from=data.get("resume_from"),
        resume_step=data.get("resume_step"),
        config=config,
    )
    state.attempts.append(attempt)
    state.last_attempt, state.spawning = max(state.last_attempt, attempt.number), None
    state.state = "stopping" if state.stop_requested else "starting"
    state.started, state.ended = event.ts, None
    state.step = attempt.resume_step or 0
    state.reason = state.hint = state.tail = state.verdict = state.phase = ""
    state.evidence, state.suspected, state.weights = {}, None, None
    state.phase_done = state.phase_total = None
    state.recent_seconds.clear()
    if not attempt.resume_step:
        state.best_loss = None


def _stop_requested(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.stop_requested = event.id
    if state.live_attempt:
        state.state = "stopping"


def _monitoring(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.monitoring = bool(data["enabled"])
    if not state.monitoring:
        state.suspected = None


def _phase_started(state: RunState, event: Event, data: dict[str, Any]) -> None:
    if state.state == "starting":
        state.state = "running"
    state.phase, state.phase_unit = str(data["phase"]), str(data.get("unit") or "")
    state.phase_total, state.phase_done, state.phase_started = number(data.get("total")), None, event.ts


def _phase_progress(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.phase_done = number(data.get("done"))
    state.phase_total = number(data.get("total")) or state.phase_total


def _step(state: RunState, event: Event, data: dict[str, Any]) -> None:
    if state.state == "starting":
        state.state = "running"
    state.step, state.total_steps = int(data["step"]), int(data.get("total_steps") or state.total_steps)
    state.epoch = int(data.get("epoch") or state.epoch)
    state.loss, state.lr = number(data.get("loss")), number(data.get("lr"))
    if state.loss is not None and math.isfinite(state.loss):  # a NaN would stay the best for ever
        state.best_loss = state.loss if state.best_loss is None else min(state.best_loss, state.loss)
    seconds = number(data.get("step_seconds"))
    if seconds is not None and seconds >= 0:
        state.recent_seconds.append(seconds)
    state.images_per_second, state.memory_gib = number(data.get("images_per_second")), number(data.get("memory_gib"))
    if attempt := state.live_attempt:
        attempt.first_step = attempt.first_step or state.step
        attempt.last_step = state.step


def _checkpoint(state: RunState, event: Event, data: dict[str, Any]) -> None:
    path = str(data["path"])
    state.checkpoints[path] = Checkpoint(
        path, str(data["kind"]), int(data["step"]), int(data.get("epoch") or 0), int(data.get("bytes") or 0),
        event.attempt or 0, event.ts,
    )  # fmt: skip


def _sample(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.samples.append({**data, "ts": event.ts, "attempt": event.attempt})


def _gpu(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.gpus[str(data.get("uuid") or data.get("index"))] = {**data, "ts": event.ts}


def _host(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.host = {**data, "ts": event.ts}


def _suspected(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.suspected = {**data, "ts": event.ts}


def _cleared(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.suspected = None


def _end(state: RunState, event: Event, data: dict[str, Any]) -> None:
    outcome = event.type.removeprefix("run.")
    attempt = state.live_attempt
    if attempt:
        attempt.ended, attempt.outcome = event.ts, event.type
        state.spawning = None
    elif state.attempt is None or state.state in ("queued", "starting"):
        for request in list(state.requests):
            _settle(state, request.id)
    state.state, state.ended, state.suspected = outcome, event.ts, None
    state.queue_position, state.waiting_for = None, ""
    state.reason, state.hint = str(data.get("reason") or ""), str(data.get("hint") or "")
    state.tail, state.verdict = str(data.get("tail") or ""), str(data.get("verdict") or "")
    state.evidence = dict(data.get("evidence") or {})
    if outcome == "completed":
        state.weights = data.get("weights")
        state.step = int(data.get("steps") or state.step)
        state.resume_checkpoint = state.resume_step = None
        return
    state.resume_checkpoint, state.resume_step = data.get("resume_checkpoint"), data.get("resume_step")
    if outcome == "stalled":
        state.stalls += 1
    elif outcome == "failed":
        state.failures += 1


def _killed(state: RunState, event: Event, data: dict[str, Any]) -> None:
    if state.attempt and event.attempt in (None, state.attempt.number):
        state.attempt.killed = event.ts
    if state.state in ENDED_STATES:  # after run.stalled it brings the checkpoint up to date
        state.resume_checkpoint = data.get("resume_checkpoint", state.resume_checkpoint)
        state.resume_step = data.get("resume_step", state.resume_step)


def _titled(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.title = str(data["title"])


def _tagged(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.tags = [str(tag) for tag in data["tags"]]


def _noted(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.note = str(data["note"])


def _archived(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.archived = bool(data.get("archived", True))


_HANDLERS = {
    "config.saved": _config_saved,
    "run.requested": _requested,
    "request.refused": _refused,
    "stop.requested": _stop_requested,
    "monitoring.changed": _monitoring,
    "run.queued": _queued,
    "run.spawning": _spawning,
    "run.started": _started,
    "phase.started": _phase_started,
    "phase.progress": _phase_progress,
    "train.step": _step,
    "sample.saved": _sample,
    "checkpoint.saved": _checkpoint,
    "gpu.sampled": _gpu,
    "host.sampled": _host,
    "stall.suspected": _suspected,
    "stall.cleared": _cleared,
    "run.stalled": _end,
    "run.killed": _killed,
    "run.completed": _end,
    "run.failed": _end,
    "run.stopped": _end,
    "run.titled": _titled,
    "run.tagged": _tagged,
    "run.noted": _noted,
    "run.archived": _archived,
}


def seconds_between(start: str | None, end: str | None) -> float | None:
    """Seconds from one `ts` to another, never negative (a clock may jump); None where one is missing."""
    if not start or not end:
        return None
    return max(0.0, (parse_ts(end) - parse_ts(start)).total_seconds())
