"""Does a run's log say what really happened? Compared with the stub's own ledger and the process table."""

from __future__ import annotations

from collections import Counter, defaultdict

from fluxcore.log import Event
from fluxcore.runs.checkpoints import safetensors_problem

from .stage import Ledger, Stage

ENDS = frozenset({"run.completed", "run.failed", "run.stopped", "run.stalled"})


def ended_wrong(name: str, events: list[Event]) -> list[str]:
    """Attempts without exactly one end: one of ENDS, and behind `run.stalled` a `run.killed`."""
    problems = []
    started = [event.attempt for event in events if event.type == "run.started"]
    for attempt in started:
        ends = [event.type for event in events if event.attempt == attempt and event.type in ENDS]
        if len(ends) != 1:
            problems.append(f"{name}: attempt {attempt} ended {len(ends)} times: {ends}")
        kills = sum(event.attempt == attempt and event.type == "run.killed" for event in events)
        if ends == ["run.stalled"] and kills != 1:
            problems.append(f"{name}: attempt {attempt} stalled and has {kills} run.killed")
    strays = [event.type for event in events if event.type in ENDS and event.attempt and event.attempt not in started]
    return problems + [f"{name}: {type} of an attempt that never started" for type in strays]


def started_wrong(name: str, events: list[Event], ledger: Ledger) -> list[str]:
    """Duplicate spawns: two trainers of one attempt, two attempts of one request; and starts that the log lacks."""
    problems = []
    trainers = Counter(start.attempt for start in ledger.starts)
    for attempt, count in trainers.items():
        if count > 1:
            problems.append(f"{name}: {count} trainers of attempt {attempt}")
    logged = {event.attempt: event.data["pid"] for event in events if event.type == "run.started"}
    for start in ledger.starts:
        if logged.get(start.attempt) != start.pid:
            problems.append(f"{name}: trainer {start.pid} of attempt {start.attempt}, the log has {logged}")
    answers = Counter(event.data["request"] for event in events if event.type in ("run.started", "request.refused"))
    return problems + [f"{name}: request {request} answered {n} times" for request, n in answers.items() if n > 1]


def unanswered(name: str, events: list[Event]) -> list[str]:
    """Requests that nothing answered (a stop of a queued run answers it too)."""
    open_requests: list[str] = []
    for event in events:
        if event.type == "run.requested":
            open_requests.append(event.id)
        elif event.type in ("run.started", "request.refused"):
            open_requests = [request for request in open_requests if request != event.data["request"]]
        elif event.type == "run.stopped" and event.attempt is None:
            open_requests = []
    return [f"{name}: request {request} was never answered" for request in open_requests]


def numbered_wrong(name: str, events: list[Event]) -> list[str]:
    """Writers whose events are not numbered from 1 without gaps."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for event in events:
        numbers[event.writer].append(event.n)
    wrong = [writer for writer, found in numbers.items() if found != list(range(1, len(found) + 1))]
    return [f"{name}: the events of {writer} are not numbered without gaps" for writer in wrong]


def untrue(stage: Stage, name: str) -> list[str]:
    """Where the folded state contradicts the process table; for a moment at which nothing changes."""
    state, ledger = stage.state(name), stage.ledger(name)
    alive, marked = ledger.alive, stage.marked(name)
    if state.state in ("running", "stopping"):
        attempt = state.live_attempt
        if attempt is None or [start.pid for start in alive] != [attempt.pid]:
            return [f"{name}: the log says {state.state}, its live trainers are {[start.pid for start in alive]}"]
        return []
    if alive or marked:
        return [f"{name}: the log says {state.state}, but processes {marked or alive} live"]
    # One that was killed behind its last write, before it could say so, has completed as well.
    if state.state == "completed" and ledger.ends.get(state.attempts[-1].number, 0) != 0:
        return [f"{name}: completed, but its trainer did not end so: {ledger.ends}"]
    weights = stage.outputs / name / f"{name}.safetensors"
    if state.state == "completed" and (not weights.is_file() or safetensors_problem(weights)):
        return [f"{name}: completed without its LoRA"]
    return []
