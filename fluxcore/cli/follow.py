"""`--wait`: following a run to its end, automatic attempts included, with a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fluxcore.history.run_row import total_seconds
from fluxcore.log import Event, FolderReader, utc_now
from fluxcore.runs import ENDED_STATES, RunError, RunFolder, RunState, seconds_between
from fluxcore.runs.exits import RESUME_WITH
from fluxcore.runs.outlook import command
from fluxcore.units import duration, size

from .out import note
from .progress import ProgressView

POLL_SECONDS = 0.2
RUNNER_CHECK_SECONDS = 5.0
KILL_PATIENCE_SECONDS = 180.0
EXIT_CODES = {"completed": 0, "failed": 1, "stopped": 3, "stalled": 4}
INTERRUPTED = 130

Sleep = Callable[[float], None]


def wait_for_end(folder: RunFolder, request: Event, *, sleep: Sleep = time.sleep, quiet: bool = False) -> int:
    """Follow the run that `request` asked for to its end and return the contract's exit code.

    A runner that dies meanwhile is started again. Ctrl-C leaves the run alone and returns 130. Raises RunError where
    the runner refused the request.
    """
    reader, state = FolderReader(folder.path), RunState(folder.name)
    view = ProgressView(folder.name)
    checked, asked = time.monotonic(), False
    try:
        with view:
            while True:
                for event in reader.read_new():
                    state.apply(event)
                    if event.type == "request.refused" and event.data.get("request") == request.id:
                        raise RunError(f"the request was refused: {event.data.get('reason') or 'no reason given'}")
                    asked = asked or event.id == request.id
                    if asked:  # what the attempts before it came to is no news
                        view.see(event, state)
                if is_over(state, request.id):
                    break
                view.draw(state)
                if time.monotonic() - checked > RUNNER_CHECK_SECONDS:
                    checked = time.monotonic()
                    _keep_runner(folder.path.parent)
                sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        note(f"{folder.name} goes on; `{command('status', folder)}` shows it, `{command('stop', folder)}` ends it")
        return INTERRUPTED
    if not quiet or state.state != "completed":
        note(ending(folder, state))
    return EXIT_CODES[state.state]


def is_over(state: RunState, request: str) -> bool:
    """Whether the run has ended for good: `request` is answered and no automatic attempt follows."""
    from fluxcore.runs.auto_resume import auto_resume_follows

    if state.state not in ENDED_STATES or state.requests or request not in state.served:
        return False
    return not (state.state == "stalled" and _kill_goes_on(state)) and not auto_resume_follows(state)


def _kill_goes_on(state: RunState) -> bool:
    """A `run.stalled` is followed by `run.killed`; where that never comes its runner died, and we wait no longer."""
    attempt = state.attempt
    if attempt is None or attempt.killed is not None:
        return False
    return (seconds_between(attempt.ended, utc_now()) or 0.0) < KILL_PATIENCE_SECONDS


def _keep_runner(outputs: Path) -> None:
    from fluxcore.runs.supervision import ensure_runner

    try:
        ensure_runner(outputs)
    except RunError as error:
        note(str(error))


def wait_until_stopped(folder: RunFolder, *, sleep: Sleep = time.sleep) -> int:
    """Follow a run until nothing of it lives any more; 0, or 130 on Ctrl-C."""
    reader, state = FolderReader(folder.path), RunState(folder.name)
    checked = time.monotonic()
    try:
        while True:
            for event in reader.read_new():
                state.apply(event)
            if not state.is_busy:
                note(ending(folder, state))
                return 0
            if time.monotonic() - checked > RUNNER_CHECK_SECONDS:
                checked = time.monotonic()
                _keep_runner(folder.path.parent)
            sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        note(f"the request to stop {folder.name} stands")
        return INTERRUPTED


def ending(folder: RunFolder, state: RunState) -> str:
    """One sentence: how the run ended, and what to do."""
    took = duration(total_seconds(state))
    where = f"step {state.step}" + (f" of {state.total_steps}" if state.total_steps else "")
    go_on = "; there is no checkpoint to go on from"
    if f"{RESUME_WITH} `" in state.hint:  # that is the resume that works
        go_on = ""
    elif state.resume_checkpoint:
        go_on = f"; it can go on from step {state.resume_step}: {command('resume', folder)}"
    if state.state == "completed":
        weights = folder.final_weights
        bytes_ = f" ({size(weights.stat().st_size)})" if weights.is_file() else ""
        return f"{state.name} is completed: {state.step} steps in {took}, {weights}{bytes_}"
    if state.state == "failed":
        why = state.hint or state.reason or "no reason is known"
        return f"{state.name} failed at {where} ({state.reason}): {why.rstrip('.')}{go_on}"
    if state.state == "stalled":
        why = f": {state.hint.rstrip('.')}" if state.hint else ""
        return f"{state.name} was stuck at {where} ({state.verdict}) and was ended{why}{go_on}"
    if state.state == "stopped":
        why = f" ({state.reason}): {state.hint}" if state.hint else ""
        return f"{state.name} is stopped at {where}{why}{go_on}"
    return f"{state.name} is {state.state}"
