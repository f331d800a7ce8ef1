"""What each type of event does to a run's state. `RunState.apply` looks here; nothing else does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fluxcore.config.migrate import migrate
from fluxcore.log import Event, number, parse_ts, whole_number

from .records import ENDED_STATES, Attempt, Checkpoint, Measured, Request

if TYPE_CHECKING:
    from .fold import RunState


def _config_saved(state: RunState, event: Event, data: dict[str, Any]) -> None:
    before, state.config, state.config_id = state.config, migrate(data["config"], data.get("schema", 1)), event.id
    state.configs[event.id] = state.config
    if not state.is_live and (not before or _monitored(before) != _monitored(state.config)):
        state.monitoring, state.switched_ahead = _monitored(state.config), False


def _monitored(config: dict[str, Any]) -> bool:
    return bool(config.get("enable_monitoring", True))


def _requested(state: RunState, event: Event, data: dict[str, Any]) -> None:
    if event.id in state.served:
        return
    config = str(data.get("config") or state.config_id)
    request = Request(event.id, config, data.get("resume_from"), str(data.get("reason") or ""), event.ts)
    state.requests.append(request)
    if not state.is_live and state.live_attempt is None:
        state._before_request = state.state, state.stop_requested, state.stop_reason
        state.state = "queued"
        if not request.is_automatic:
            state.stop_requested, state.stop_reason, state.automatic_refused = None, "", False
            if not state.switched_ahead:
                state.monitoring = _monitored(state.configs.get(config, state.config))
            state.switched_ahead = False
        state.queue_position, state.waiting_for, state.refusal = None, "", ""


def _refused(state: RunState, event: Event, data: dict[str, Any]) -> None:
    refused = _settle(state, data.get("request"))
    state.automatic_refused = state.automatic_refused or (refused is not None and refused.is_automatic)
    if state.spawning and state.spawning.get("request") == data.get("request"):
        state.spawning = None
    if state.state in ("queued", "starting") and not state.requests and state.live_attempt is None:
        state.refusal = str(data.get("reason") or "")
        state.state, stop, why = state._before_request
        if stop and not state.stop_requested:
            state.stop_requested, state.stop_reason = stop, why


def _settle(state: RunState, request_id: Any) -> Request | None:
    """Take a request off the list; it is answered, whatever order its events come in."""
    state.served.add(str(request_id))
    found = next((request for request in state.requests if request.id == request_id), None)
    state.requests = [request for request in state.requests if request.id != request_id]
    return found


def _queued(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.queue_position = whole_number(data.get("position"))
    state.waiting_for = str(data.get("waiting_for") or "")


def _spawning(state: RunState, event: Event, data: dict[str, Any]) -> None:
    again = state.spawning is not None and state.spawning.get("request") == data.get("request")
    state.intents = state.intents + 1 if again else 1
    state.spawning, state.coming = {**data, "ts": event.ts}, None
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
        asked=request.ts if request else event.ts,
    )
    begun = state.coming is not None and state.coming.number == attempt.number
    if begun and state.coming:
        attempt.first_step, attempt.last_step = state.coming.first_step, state.coming.last_step
    else:
        _begin(state, attempt.resume_step)
    state.attempts.append(attempt)
    state.last_attempt, state.spawning, state.coming = max(state.last_attempt, attempt.number), None, None
    if state.stop_requested:
        state.state = "stopping"
    elif not (begun and state.state == "running"):
        state.state = "starting"
    state.started, state.ended = event.ts, None


def _begin(state: RunState, resume_step: int | None) -> None:
    """Forget how the attempt before got on and ended."""
    state.step = resume_step or 0
    state.reason = state.hint = state.tail = state.verdict = state.phase = ""
    state.evidence, state.side_file, state.suspected, state.disk_low, state.weights = {}, None, None, None, None
    state.automatic_refused = False
    state.phase_done = state.phase_total = state.phase_started = None
    state.phase_seconds, state.seconds_beside, state.wishes = {}, 0.0, frozenset()
    state.measured = [one for one in state.measured if one.step <= (resume_step or 0)] if resume_step else []
    state.recent_seconds.clear()
    state.stepping_seconds, state.timed_steps = 0.0, 0
    state.loss = state.lr = state.images_per_second = state.memory_gib = None
    state.epoch = 0
    state.notices = {}
    state.lows = [low for low in state.lows if low[0] <= (resume_step or 0)]
    state.best_loss = state.lows[-1][1] if state.lows else None


def _heed_early(state: RunState, event: Event) -> None:
    """A runner that died behind its intent announces the trainer late: what that says before counts as well."""
    intent = state.spawning
    if intent is not None and state.coming is None and event.attempt == int(intent["attempt"]):
        state.coming = Attempt(event.attempt, str(intent.get("request") or ""), event.ts)
        _begin(state, intent.get("resume_step"))


RUNNERS_STOPS = frozenset({"disk_low", "shutdown"})
"""Reasons for which the runner itself asks a run to stop; whatever a person's stop says, it is the person's."""


def _stop_requested(state: RunState, event: Event, data: dict[str, Any]) -> None:
    if not state.stop_requested:
        reason = data.get("reason")
        state.stop_reason = str(reason) if event.source == "runner" and reason in RUNNERS_STOPS else "user"
    state.stop_requested = event.id
    if state.live_attempt:
        state.state = "stopping"


def _monitoring(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.monitoring = bool(data["enabled"])
    state.switched_ahead = not state.is_live and state.live_attempt is None
    if not state.monitoring:
        state.suspected = None


def _phase_started(state: RunState, event: Event, data: dict[str, Any]) -> None:
    _heed_early(state, event)
    if state.state == "starting":
        state.state = "running"
    spent = _leave_phase(state, event)
    if state.phase != "train" and state.timed_steps:
        state.seconds_beside += spent
    state.wishes -= {str(data["phase"])}
    state.phase, state.phase_unit = str(data["phase"]), str(data.get("unit") or "")
    state.phase_total, state.phase_done, state.phase_started = number(data.get("total")), None, event.ts


def _leave_phase(state: RunState, event: Event) -> float:
    """The phase that it was in ends with `event`; returns how many seconds it was in it."""
    seconds = 0.0
    if state.phase and state.phase_started:
        seconds = max(0.0, (parse_ts(event.ts) - parse_ts(state.phase_started)).total_seconds())
        state.phase_seconds[state.phase] = state.phase_seconds.get(state.phase, 0.0) + seconds
    state.phase_started = None
    return seconds


def _wished(state: RunState, event: Event, data: dict[str, Any]) -> None:
    if state.live_attempt:
        state.wishes |= {event.type.removesuffix(".requested")}


def _phase_progress(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.phase_done = number(data.get("done"))
    state.phase_total = number(data.get("total")) or state.phase_total


def _step(state: RunState, event: Event, data: dict[str, Any]) -> None:
    _heed_early(state, event)
    state.step = int(data["step"])
    if state.state == "starting":
        state.state = "running"
    state.total_steps = int(data.get("total_steps") or state.total_steps)
    state.epoch = int(data.get("epoch") or state.epoch)
    state.loss, state.lr = number(data.get("loss")), number(data.get("lr"))
    best = math.inf if state.best_loss is None else state.best_loss
    if state.loss is not None and -math.inf < state.loss < best:  # what is not finite would stay the best for ever
        state.best_loss = state.loss
        state.lows.append((state.step, state.loss))
    seconds = number(data.get("step_seconds"))
    if seconds is not None and seconds >= 0:
        state.recent_seconds.append(seconds)
        state.stepping_seconds, state.timed_steps = state.stepping_seconds + seconds, state.timed_steps + 1
    state.images_per_second, state.memory_gib = number(data.get("images_per_second")), number(data.get("memory_gib"))
    if attempt := state.coming or state.live_attempt:
        attempt.first_step = attempt.first_step or state.step
        attempt.last_step = state.step


def _checkpoint(state: RunState, event: Event, data: dict[str, Any]) -> None:
    path = str(data["path"])
    state.checkpoints[path] = Checkpoint(
        path, str(data["kind"]), int(data["step"]), int(data.get("epoch") or 0), int(data.get("bytes") or 0),
        event.attempt or 0, event.ts, number(data.get("validation_loss")),
    )  # fmt: skip


def _measured(state: RunState, event: Event, data: dict[str, Any]) -> None:
    loss = number(data["loss"])
    if loss is not None:
        state.measured.append(Measured(int(data["step"]), loss, event.ts))


def _noticed(state: RunState, event: Event, data: dict[str, Any]) -> None:
    _heed_early(state, event)
    said = [*data.get("notices", []), data.get("notice"), data.get("hint")]
    if text := " ".join(_sentence(part) for part in said if part):
        state.notices[notice_key(event)] = text


def notice_key(event: Event) -> str:
    """What `RunState.notices` has an event's sentences under: its type, of memory.short each phase for itself."""
    return f"{event.type} {event.data.get('phase', '')}".rstrip()


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


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


def _disk_low(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.disk_low = {**data, "ts": event.ts}


def _disk_cleared(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.disk_low = None


def _end(state: RunState, event: Event, data: dict[str, Any]) -> None:
    outcome = event.type.removeprefix("run.")
    attempt = state.live_attempt
    if attempt:
        attempt.ended, attempt.outcome, attempt.seconds = event.ts, event.type, number(data.get("seconds"))
        state.spawning = None
    elif state.attempt is None or state.state in ("queued", "starting"):
        for request in list(state.requests):
            _settle(state, request.id)
    _leave_phase(state, event)
    state.state, state.ended, state.suspected, state.disk_low = outcome, event.ts, None, None
    state.wishes = frozenset()
    state.queue_position, state.waiting_for = None, ""
    state.reason, state.hint = str(data.get("reason") or ""), str(data.get("hint") or "")
    state.tail, state.verdict = str(data.get("tail") or ""), str(data.get("verdict") or "")
    state.evidence, aside = dict(data.get("evidence") or {}), data.get("side_file")
    state.side_file = aside if isinstance(aside, str) else None
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


def _published(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.published = {**data, "ts": event.ts}


def _archived(state: RunState, event: Event, data: dict[str, Any]) -> None:
    state.archived = bool(data.get("archived", True))


TRANSITIONS: dict[str, Callable[[RunState, Event, dict[str, Any]], None]] = {
    "config.saved": _config_saved,
    "run.requested": _requested,
    "request.refused": _refused,
    "stop.requested": _stop_requested,
    "sample.requested": _wished,
    "save.requested": _wished,
    "monitoring.changed": _monitoring,
    "run.queued": _queued,
    "run.spawning": _spawning,
    "run.started": _started,
    "phase.started": _phase_started,
    "phase.progress": _phase_progress,
    "train.step": _step,
    "sample.saved": _sample,
    "checkpoint.saved": _checkpoint,
    "validation.measured": _measured,
    "resume.adapted": _noticed,
    "dataset.changed": _noticed,
    "memory.short": _noticed,
    "weights.adapted": _noticed,
    "gpu.sampled": _gpu,
    "host.sampled": _host,
    "stall.suspected": _suspected,
    "stall.cleared": _cleared,
    "disk.low": _disk_low,
    "disk.cleared": _disk_cleared,
    "run.stalled": _end,
    "run.killed": _killed,
    "run.completed": _end,
    "run.failed": _end,
    "run.stopped": _end,
    "run.titled": _titled,
    "run.tagged": _tagged,
    "run.noted": _noted,
    "run.published": _published,
    "run.archived": _archived,
}
