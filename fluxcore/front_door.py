"""The library's front door for notebooks and scripts: the seed's eight functions, over the same log as app and CLI,
and `load_steps`, a run's curves as a table.

    import fluxcore
    fluxcore.start_training("my-cat", images="photos", trigger="ohwx cat", max_train_epochs=8)
    print(fluxcore.display_active_sessions())
    fluxcore.load_steps("my-cat").to_pandas().plot("step", "loss")

All take `outputs`: the outputs folder, by default `$FLUXGYM_OUTPUTS`, else `outputs/` at the project's root. All raise
`fluxcore.UserError` with a sentence that says what to do.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxcore.config import absolute_paths, from_export, parse_config, parse_saved, resolve_config, to_export
from fluxcore.dataset import copy_dataset
from fluxcore.errors import UserError
from fluxcore.log import parse_ts
from fluxcore.models.registry import use_outputs
from fluxcore.runs import (
    RunFolder,
    RunState,
    create_run,
    default_outputs,
    find_run,
    load_all,
    load_run,
    request_resume,
    request_start,
    save_config,
    set_monitoring,
)
from fluxcore.runs.supervision import ensure_runner, observed_state, runner_alive
from fluxcore.tail import last_lines

if TYPE_CHECKING:
    import pyarrow as pa

AnyPath = str | os.PathLike[str]
SOURCE = "api"
RECENT = timedelta(hours=24)
LOG_LINES = 10


def start_training(
    lora_name: str,
    images: AnyPath | None = None,
    trigger: str | None = None,
    *,
    restart: bool = False,
    outputs: AnyPath | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Ask for a training and return the session, as `get_active_trainings` has it. It goes on when this process ends.

    A run that is not there yet is made with a copy of the pictures of `images`; one that is there gets the changed
    `settings` (names of the config, such as `max_train_epochs=8`) and goes on from `resume_from_checkpoint` where that
    is given, or begins afresh with `restart=True`. Raises UserError where the request can't be granted.
    """
    root = _outputs(outputs)
    resume_from = str(settings.get("resume_from_checkpoint") or "")
    if restart and resume_from:
        raise UserError("give either restart=True or resume_from_checkpoint, not both")
    if trigger is not None:
        settings["concept_sentence"] = trigger
    if _exists(root, lora_name):
        if images is not None:
            raise UserError(f"{lora_name} has its pictures already; leave `images` out, or choose another name")
        if settings:
            save_training_state(lora_name, settings, outputs=root)
    else:
        if images is None:
            raise UserError(f"{lora_name} needs pictures: give their folder as `images`")
        config = resolve_config(absolute_paths(settings), {"lora_name": lora_name})
        source = Path(images).expanduser()
        create_run(root, config, SOURCE, lambda dataset: copy_dataset(source, dataset))
    if resume_from:
        request_resume(root, lora_name, SOURCE, from_state=resume_from)
    else:
        request_start(root, lora_name, SOURCE, restart=restart)
    ensure_runner(root)
    return _session(load_run(root, lora_name)[1], root)


def save_training_state(lora_name: str, config: Mapping[str, Any], *, outputs: AnyPath | None = None) -> Path:
    """Save settings for a run, made as a draft where there is none; returns its `ui_state.json`.

    `config` may be a part of the settings: the rest stay as they were. `timestamp` and `status` are left out. Raises
    UserError for a setting that is wrong or unknown.
    """
    root = _outputs(outputs)
    given, unknown = from_export(absolute_paths(config))
    if unknown:
        raise UserError(f"{', '.join(unknown)} {'is not a setting' if len(unknown) == 1 else 'are not settings'}")
    if _exists(root, lora_name):
        folder, state = load_run(root, lora_name)
        # What was saved before is complete: no preset changes it behind its owner's back.
        save_config(
            root, parse_config({**parse_saved(state.config).model_dump(), **given, "lora_name": lora_name}), SOURCE
        )
        return folder.ui_state
    return create_run(root, resolve_config(given, {"lora_name": lora_name}), SOURCE).ui_state


def load_steps(lora_name: str, columns: Sequence[str] | None = None, *, outputs: AnyPath | None = None) -> pa.Table:
    """A run's steps as an Arrow table, by step (`.to_pandas()` makes a frame): `columns` of the `steps` view.

    Straight out of the log, without a database: the quickest way to one run's curves. By default step, epoch, ts, loss,
    lr and grad_norm; see docs/sql.md for all. Raises UserError where there is no such run or column.
    """
    from fluxcore.history.frame import DEFAULT_COLUMNS, read_steps

    folder = find_run(_outputs(outputs), lora_name)
    return read_steps(folder.path, DEFAULT_COLUMNS if columns is None else columns)


def load_training_state(lora_name: str, *, outputs: AnyPath | None = None) -> dict[str, Any]:
    """The run's saved settings in the form of `ui_state.json`, with `timestamp` (epoch seconds) and `status`."""
    root = _outputs(outputs)
    _, state = load_run(root, lora_name)
    saved = parse_ts(state.updated).timestamp() if state.updated else None
    return to_export(parse_saved(state.config), observed_state(state, root), saved)


def restore_ui_state(lora_name: str, *, outputs: AnyPath | None = None) -> dict[str, Any]:
    """Every setting of the run by its name, as a form takes it: `load_training_state` without time and status."""
    _, state = load_run(_outputs(outputs), lora_name)
    return parse_saved(state.config).model_dump()


def get_active_trainings(*, outputs: AnyPath | None = None) -> list[dict[str, Any]]:
    """The sessions that are live, then those that ended within 24 hours, newest first.

    Each has `lora_name`, `status` ("running" or "recent"), `state`, `started` and `ended` (aware datetimes or None),
    `epochs`, `steps` (what `max_train_steps` sets instead of epochs, or None), `checkpointing`, `monitoring`, `step`,
    `total_steps`, `loss`, `eta_seconds`, `resume_checkpoint`. A run whose log can't be read is left out with a warning.
    """
    root = _outputs(outputs)
    sessions = []
    states, problems = load_all(root)
    for problem in problems:
        warnings.warn(f"left out: {problem}", stacklevel=2)
    for state in states:
        session = _session(state, root)
        if session["status"]:
            sessions.append(session)
    newest = sorted(sessions, key=lambda session: session["started"] or _EPOCH, reverse=True)
    return sorted(newest, key=lambda session: session["status"] != "running")


def display_active_sessions(*, outputs: AnyPath | None = None) -> str:
    """The active sessions as Markdown: 🟢 running, 🔵 recent."""
    sessions = get_active_trainings(outputs=outputs)
    if not sessions:
        return "No active training sessions."
    return "\n\n".join(["### 🔄 Active Training Sessions", *(_markdown(session) for session in sessions)])


def get_monitor_status(lora_name: str, *, outputs: AnyPath | None = None, lines: int = LOG_LINES) -> dict[str, Any]:
    """Whether the run is monitored: `running`, `enabled`, `pid` of the runner or None, `log` and its last `lines`."""
    root = _outputs(outputs)
    folder, state = load_run(root, lora_name)
    runner = runner_alive(root)
    watched = runner is not None and state.monitoring and state.is_busy
    return {
        "running": watched,
        "enabled": state.monitoring,
        "pid": runner.pid if runner and watched else None,
        "log": folder.monitor_log,
        "lines": last_lines(folder.monitor_log, lines),
    }


def stop_monitor(lora_name: str, *, outputs: AnyPath | None = None) -> dict[str, Any]:
    """Switch the run's monitoring off: no verdict and no kill until it is switched on; the training goes on."""
    root = _outputs(outputs)
    set_monitoring(root, lora_name, SOURCE, False)
    return get_monitor_status(lora_name, outputs=root)


_EPOCH = datetime.fromtimestamp(0, UTC)


def _outputs(given: AnyPath | None) -> Path:
    return use_outputs(default_outputs() if given is None else Path(given).absolute())


def _exists(outputs: Path, name: str) -> bool:
    return any(RunFolder.of(outputs, name).path.glob("events*.jsonl"))


def _session(state: RunState, outputs: Path) -> dict[str, Any]:
    started, ended = (parse_ts(ts) if ts else None for ts in (state.started, state.ended))
    status = ""
    if state.is_busy:
        status = "running"
    elif ended and datetime.now(UTC) - ended < RECENT:
        status = "recent"
    attempt = state.attempt
    config = state.served_config(attempt) if attempt and not state.is_coming else state.config
    if state.is_coming:  # nothing of the attempt before is the next one's
        started = ended = None
    return {
        "lora_name": state.name,
        "status": status,
        "state": observed_state(state, outputs),
        "started": started,
        "ended": ended,
        "epochs": config.get("max_train_epochs"),
        "steps": config.get("max_train_steps") or None,
        "checkpointing": bool(config.get("enable_checkpointing", True)),
        "monitoring": state.monitoring,
        "step": (state.coming_step or 0) if state.is_coming else state.step,
        "total_steps": state.total_steps or None,
        "loss": None if state.is_coming else state.loss,
        "eta_seconds": None if state.is_coming else state.eta_seconds,
        "resume_checkpoint": state.resume_checkpoint,
    }


def _markdown(session: dict[str, Any]) -> str:
    tick = {True: "✅", False: "❌"}
    light = "🟢" if session["status"] == "running" else "🔵"
    started = session["started"].astimezone().strftime("%Y-%m-%d %H:%M:%S") if session["started"] else "not yet"
    lines = [
        f"{light} **{session['lora_name']}** - {session['state'].capitalize()}",
        f"   - Started: {started}",
        f"   - Steps: {session['steps']}" if session["steps"] else f"   - Epochs: {session['epochs']}",
        f"   - Checkpointing: {tick[session['checkpointing']]}",
        f"   - Monitoring: {tick[session['monitoring']]}",
    ]
    if session["total_steps"]:
        loss = f", loss {session['loss']:.4f}" if session["loss"] is not None else ""
        lines.insert(2, f"   - Step: {session['step']} of {session['total_steps']}{loss}")
    return "\n".join(lines)
