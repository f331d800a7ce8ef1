"""What a person is told once a run has ended: what happened, why it is not resumed by itself, from where it can go on
and with which command. One source of these sentences for monitor.log, `status`, the pages and alerts.
"""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import Any

from fluxcore import units
from fluxcore.log import number, side_data

from .auto_resume import PAUSE, not_before, why_not_resumed
from .files import PROJECT_ROOT, RunFolder
from .fold import RunState
from .records import Attempt

LOST = (
    "The log says that it runs, but its process is gone and no runner is alive to say what happened. Start the runner: "
    "it finds out, and resumes the run where it can."
)
NO_RUNNER = "no runner serves this folder; `./fluxgym runner` (or start, or app) starts one"
PAUSED = "./fluxgym queue resume (the queue is paused)"
THEN_RESUME = ", then resume."
LIFE_SHARE = 0.5
"""A process that was still for less than this share of the wait was at work, for all that can be seen from outside."""


def command(verb: str, folder: RunFolder, *more: str) -> str:
    """The command line that does it, to be copied: from the project's folder."""
    outputs = folder.path.absolute().parent
    place = [] if outputs == PROJECT_ROOT / "outputs" else ["--outputs", str(outputs)]
    return shlex.join(["./fluxgym", verb, folder.name, *more, *place])


def what_happened(state: RunState) -> str:
    """How an ended run came to its end, in a sentence or two; "" for one that has not ended or is completed.

    Of one that waits to be resumed by itself: how the attempt before came to its end.
    """
    where = at_step(state.step, state.total_steps)
    ended: str = state.state
    if state.attempt is not None and state.is_coming and _resumes_by_itself(state):
        ended = (state.attempt.outcome or "").removeprefix("run.")
    hint = fitting_hint(state, state.hint)
    if ended == "stalled":
        return " ".join(
            part for part in (f"It was stuck {where}.", stall_words(state.verdict, state.evidence), hint) if part
        )
    if ended == "failed":
        reason = state.reason or "no reason is known"
        return " ".join(part for part in (f"It failed {where} ({reason}).", hint) if part)
    if ended == "stopped":
        why = {"user": "on request", "disk_low": "the disk was almost full", "shutdown": "the machine was shut down"}
        said = why.get(state.reason, state.reason)
        return " ".join(
            part for part in (f"It was stopped {where}" + (f": {said}." if said else "."), state.hint) if part
        )
    return ""


def fitting_hint(state: RunState, hint: str, now: datetime | None = None) -> str:
    """A failure's hint without telling to resume, where the run does so by itself. `now`: aware (default: now)."""
    if not hint.endswith(THEN_RESUME) or not (_resumes_by_itself(state) or not why_not_resumed(state, now)):
        return hint
    return hint.removesuffix(THEN_RESUME) + "."


def stall_words(verdict: str, evidence: dict[str, Any]) -> str:
    """Why a stuck run was ended, in a sentence."""
    waited = number(evidence.get("seconds_without_progress"))
    if waited is None:
        return f"It was ended ({verdict or 'no verdict'})."
    phase = f" in the phase {evidence['phase']!r}" if evidence.get("phase") else ""
    idle = number(evidence.get("gpu_idle_seconds"))
    gpu = f", the GPU at 0 % for {units.duration(idle)}" if idle else ""
    return f"No progress for {units.duration(waited)}{phase}{gpu}, so it was ended ({verdict})."


def all_evidence(folder: RunFolder, state: RunState) -> tuple[dict[str, Any], str]:
    """What was seen when the run ended, and the last lines of its trainer: whole, where the log has but a part."""
    aside = side_data(folder.path, state.side_file)
    evidence, tail = aside.get("evidence"), aside.get("tail")
    return (
        evidence if isinstance(evidence, dict) else state.evidence,
        tail if isinstance(tail, str) else state.tail,
    )


def evidence_words(seen: dict[str, Any]) -> str:
    """A stall's evidence in a sentence; "" where it says nothing."""
    what = "a step" if seen.get("phase") in ("train", None) else "progress"
    parts = []
    waited = number(seen.get("seconds_without_progress")) or number(seen.get("seconds_without_step"))
    if waited:
        limit = _seconds(seen, "limit_seconds")
        parts.append(f"{waited:.4g} s without {what}" + (f" (limit {limit})" if limit else ""))
    if longest := _seconds(seen, "longest_step_seconds"):
        parts.append(f"the longest step took {longest}")
    if idle := _seconds(seen, "gpu_idle_seconds"):
        parts.append(f"the GPU was at 0 % for {idle}")
    still = number(seen.get("seconds_without_life"))
    if still is not None and waited:
        alive = still < LIFE_SHARE * waited
        parts.append("its processes were still at work" if alive else f"no sign of life for {still:.4g} s")
    if seen.get("process_stopped"):
        parts.append("its process was stopped (SIGSTOP, or a debugger)")
    return "; ".join(parts) + "." if parts else ""


def at_step(step: int, total: int | None) -> str:
    """`at step 12 of 1000`."""
    return f"at step {step}" + (f" of {total}" if total else "")


def why_it_stays(state: RunState, now: datetime | None = None) -> str:
    """Why a stalled or failed run is not resumed by itself, as a sentence; "" where it is, or has no checkpoint."""
    if state.state not in ("stalled", "failed") or state.must_be_killed or state.resume_checkpoint is None:
        return ""
    why = why_not_resumed(state, now)
    return f"It is not resumed by itself: {why}." if why else ""


def going_on(
    state: RunState, folder: RunFolder, *, attempt: int | None = None, why: bool = True, now: datetime | None = None
) -> list[str]:
    """From where a run goes on and by whom, a sentence each; how it ended is `what_happened`.

    `attempt`: the one whose end this is about (default: the newest); where a later one has begun, that one is told of.
    `why`: say why it is not resumed by itself. `now`: an aware datetime (default: now).
    """
    later = next((one for one in state.attempts if attempt is not None and one.number > attempt), None)
    if later is not None:
        return [_began(later)]
    where = f"{state.resume_checkpoint} (step {state.resume_step})"
    if _resumes_by_itself(state) or not why_not_resumed(state, now):
        return [f"It resumes by itself from {where}."]
    if state.is_busy and not state.must_be_killed:
        return ["Somebody has asked for it again already: it goes on when its turn comes."]
    if state.resume_checkpoint is None:
        return ["There is no checkpoint to go on from.", f"To begin again: {command('start', folder, '--restart')}"]
    stays = why_it_stays(state, now) if why else ""
    return [
        *([stays] if stays else []),
        f"Checkpoint to go on from: {where}",
        f"To resume: {command('resume', folder)}",
    ]


def waits_for(state: RunState, *, runner: bool, paused: bool, now: datetime | None = None) -> str:
    """What a queued run waits for; what a runner that is gone last said of it is not true any more.

    `now`: an aware datetime (default: now).
    """
    if not runner:
        return "a runner (none is alive)"
    if paused:
        return PAUSED
    left = not_before(state) - (now or datetime.now(UTC)).timestamp()
    pause = f" ({units.duration(left)} left)" if state.waiting_for == PAUSE and left >= 1 else ""
    return (state.waiting_for or "the runner") + pause


def _resumes_by_itself(state: RunState) -> bool:
    return any(request.is_automatic for request in state.requests)


def _began(attempt: Attempt) -> str:
    if attempt.resume_from is None:
        return "It was started again since, from step 0."
    where = f"{attempt.resume_from} (step {attempt.resume_step})"
    return (
        f"It resumes by itself from {where}." if attempt.is_automatic else f"Somebody resumed it since, from {where}."
    )


def _seconds(seen: dict[str, Any], name: str) -> str:
    value = number(seen.get(name))
    return f"{value:.4g} s" if value is not None and value > 0 else ""
