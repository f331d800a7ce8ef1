"""What a person asks for with a button: the request, and a word on what became of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from fluxcore import runs
from fluxcore.config import RunConfig
from fluxcore.errors import UserError
from fluxcore.runs import (
    create_run,
    default_outputs,
    request_resume,
    request_sample,
    request_save,
    request_start,
    request_stop,
    set_monitoring,
)
from fluxcore.runs.supervision import ensure_runner

from . import access
from .live import live_runs


def start_new(config: RunConfig, fill_dataset: Callable[[Path], object]) -> str:
    """Make the run and ask for its start; "", or why there is no such run. A run that is there can be started later."""
    try:
        create_run(default_outputs(), config, "app", fill_dataset)
    except (UserError, OSError) as error:
        return sentence(error)
    # Its page, which comes next, says that it starts: a toast would only lie over the banner's buttons.
    _ask(lambda: request_start(default_outputs(), config.lora_name, "app"), "")
    return ""


def start(name: str, restart: bool = False) -> None:
    """Ask for a fresh training."""
    _ask(lambda: request_start(default_outputs(), name, "app", restart=restart), f"{name} starts")


def resume(name: str, from_state: str | None = None) -> None:
    """Ask the run to go on, from the newest complete checkpoint unless another is named."""
    _ask(lambda: request_resume(default_outputs(), name, "app", from_state=from_state), f"{name} goes on")


def sample(name: str) -> None:
    """Ask a training under way to draw its samples now."""
    if not _stands(name, "sample"):
        done = f"{name} draws its samples after this step"
        _ask(lambda: request_sample(default_outputs(), name, "app"), done, served=False)


def save(name: str) -> None:
    """Ask a training under way to save a checkpoint and its LoRA now."""
    if not _stands(name, "save"):
        done = f"{name} saves a checkpoint after this step"
        _ask(lambda: request_save(default_outputs(), name, "app"), done, served=False)


def _stands(name: str, wish: str) -> bool:
    """Whether that is asked for already: a click can come twice while the page is slow."""
    run = live_runs().get(name)
    return run is not None and wish in run.state.wishes


def stop(name: str) -> None:
    """Ask the run to stop; its trainer saves a checkpoint first."""
    _ask(lambda: request_stop(default_outputs(), name, "app"), f"{name} is asked to stop; it saves a checkpoint first")


def monitoring(name: str, enabled: bool) -> None:
    """Switch the run's monitoring."""
    said = "is watched again" if enabled else "is no longer watched: a stall will not be caught"
    _ask(lambda: set_monitoring(default_outputs(), name, "app", enabled), f"{name} {said}", served=False)


def start_runner() -> None:
    """Start the runner where none is alive."""
    _ask(lambda: ensure_runner(default_outputs()), "The runner is up", served=False)


def resume_queue() -> None:
    """Let waiting runs start again."""
    _ask(lambda: runs.resume_queue(default_outputs(), "app"), "The queue goes on")


def do(request: Callable[[], Any], done: str) -> None:
    """Ask for something that no runner has to serve, and say what became of it."""
    _ask(request, done, served=False)


def tried(what: Callable[[], object]) -> bool:
    """Do it; a toast says why where it can't be done. Whether it was."""
    try:
        what()
    except (UserError, OSError) as error:
        st.toast(sentence(error), icon=":material/error:", duration="long")
        return False
    return True


def sentence(error: UserError | OSError) -> str:
    """An error as a person reads it."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return str(error)


def _ask(request: Callable[[], Any], done: str, *, served: bool = True) -> None:
    """Ask, say what became of it, and see that there is a runner where the request is one that it serves."""
    if access.is_viewer():
        st.toast(access.SENTENCE, icon=":material/visibility:", duration="long")
        return
    if tried(request):
        if done:
            st.toast(done, icon=":material/check:")
        if served:
            wake_runner()
    live_runs().expire()


def wake_runner() -> None:
    """Start the runner where none is alive. Where it can't be started the banner says so: the request stands."""
    try:
        ensure_runner(default_outputs())
    except (UserError, OSError):
        pass
