"""What a person can ask of a run. A request is an event in the run's log; the runner grants it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from fluxcore.atomic import sync_folder, write_atomic
from fluxcore.config import ConfigError, RunConfig, memory_preset, parse_config, parse_saved, saved_config, to_export
from fluxcore.dataset import list_pictures
from fluxcore.log import Event, EventError, EventLog, read_events
from fluxcore.trainers import HEAR_NO_WISHES, check_trainer

from .auto_resume import auto_resume_follows
from .checkpoints import CheckpointFile, find_state, list_checkpoints, resume_choice
from .files import RunError, RunFolder, check_outputs, entry_names
from .fold import RunState, fold
from .load import load_run
from .outlook import command

logger = logging.getLogger(__name__)


def check_new_name(outputs: Path, name: str) -> None:
    """Raise RunError where `name` is no name, or taken (without regard to case)."""
    RunFolder.of(outputs, name)
    taken = [entry for entry in entry_names(outputs, folders_only=False) if entry.lower() == name.lower()]
    if taken:
        raise RunError(f"the name {taken[0]!r} is taken; choose another one")


def create_run(
    outputs: Path, config: RunConfig, source: str, fill_dataset: Callable[[Path], object] | None = None
) -> RunFolder:
    """Make the run `config.lora_name`, its config saved; `fill_dataset` puts pictures into the given folder.

    The folder appears whole or not at all. Raises RunError (name, folder) or whatever `fill_dataset` raises.
    """
    check_new_name(outputs, config.lora_name)
    check_outputs(outputs)
    aside = outputs / f".new-{secrets.token_hex(6)}"
    try:
        (aside / "dataset").mkdir(parents=True)
        if fill_dataset:
            fill_dataset(aside / "dataset")
        _write(EventLog(aside, source, run=config.lora_name), "config.saved", saved_config(config))
        check_new_name(outputs, config.lora_name)
        folder = RunFolder.of(outputs, config.lora_name)
        try:
            os.rename(aside, folder.path)
        except OSError as error:
            raise RunError(f"the run's folder can't be made: {error.strerror}") from None
        with contextlib.suppress(OSError):  # so that a power cut keeps its name; not every file system can
            sync_folder(outputs)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _refresh(folder)
    return folder


def save_config(outputs: Path, config: RunConfig, source: str) -> Event:
    """Append `config.saved`; an attempt under way keeps the config that its request named."""
    folder, _ = load_run(outputs, config.lora_name)
    event = append_event(folder, source, "config.saved", saved_config(config))
    _refresh(folder)
    return event


def request_start(
    outputs: Path,
    name: str,
    source: str,
    *,
    restart: bool = False,
    reason: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Event:
    """Ask for a fresh training. Raises RunError where the run is live, has no pictures, or ran and `restart` is off.

    `settings`: changes to the run's config, saved together with the request. ConfigError where one is wrong, or the
    run's trainer can't train its config here; then nothing is saved.
    """
    folder, state = load_run(outputs, name)
    config = _changed(state, settings)
    _refuse_live(state)
    if state.attempts and not restart:
        raise RunError(f"{name} has been trained before; resume it, or start it with --restart to begin afresh")
    _refuse_empty(folder, config)
    check_trainer(config)
    return _request(folder, state, source, None, reason or ("restart" if restart else "start"), config)


def request_resume(
    outputs: Path,
    name: str,
    source: str,
    *,
    from_state: str | None = None,
    reason: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Event:
    """Ask to go on from `from_state`, or from the newest complete checkpoint. Raises RunError where there is none.

    `settings`: changes to the run's config, saved together with the request. ConfigError where one is wrong, or the
    run's trainer can't train its config here; then nothing is saved. A rank that is not the checkpoint's is refused
    where the log tells that; what else a checkpoint can't take (other layers) the trainer says.
    """
    folder, state = load_run(outputs, name)
    config = _changed(state, settings)
    _refuse_live(state)
    if from_state in (None, "", "latest"):
        chosen, wanted = resume_choice(folder, state), "latest"
        if chosen is None:
            begin = "start it with --restart" if state.attempts else "start it"
            raise RunError(f"{name} has no complete checkpoint to resume from; {begin}")
    else:
        wanted = str(from_state).rstrip("/").rsplit("/", 1)[-1]
        chosen = find_state(folder, wanted)
        if chosen is None:
            there = [
                found.name for found in list_checkpoints(folder, state) if found.kind == "state" and found.complete
            ]
            raise RunError(f"{name} has no checkpoint {wanted!r}; it has {', '.join(there) or 'none'}")
        if not chosen.complete:
            raise RunError(f"the checkpoint {wanted!r} is incomplete ({chosen.problem}); choose another one")
    if chosen.step is not None and state.total_steps and chosen.step >= _planned(folder, config):
        decides = "max_train_steps" if config.max_train_steps else "max_train_epochs"  # steps win over epochs
        raise RunError(f"{name} has no steps left after {chosen.name} (step {chosen.step}); raise {decides}")
    _refuse_other_rank(folder, state, chosen, config, from_state)
    _refuse_empty(folder, config)
    check_trainer(config)
    return _request(folder, state, source, wanted, reason or "resume", config)


def planned_steps(folder: RunFolder, state: RunState) -> int:
    """How many optimizer steps the run's present config means for its present pictures."""
    return _planned(folder, parse_saved(state.config))


def _planned(folder: RunFolder, config: RunConfig) -> int:
    from fluxcore.dataset.layout import lay_out

    return config.max_train_steps or lay_out(config, folder.dataset).total_steps


def request_stop(outputs: Path, name: str, source: str, reason: str = "user") -> Event:
    """Ask to stop. Raises RunError where nothing of the run lives, waits, or is about to start by itself."""
    folder, state = load_run(outputs, name)
    if not state.is_busy and not auto_resume_follows(state):
        raise RunError(f"{name} is not running (it is {state.state})")
    return append_event(folder, source, "stop.requested", {"reason": reason})


def request_sample(outputs: Path, name: str, source: str, reason: str = "user") -> Event:
    """Ask a training under way to draw its sample prompts after the present step. RunError where it can't."""
    folder, config = _under_way(outputs, name, "draws samples as its config says")
    if not config.sample_prompts.strip():
        raise RunError(f"{name} has no sample prompts to draw")
    return append_event(folder, source, "sample.requested", {"reason": reason})


def request_save(outputs: Path, name: str, source: str, reason: str = "user") -> Event:
    """Ask a training under way to save a checkpoint and its LoRA after the present step. RunError where it can't."""
    folder, _ = _under_way(outputs, name, "saves as its config says")
    return append_event(folder, source, "save.requested", {"reason": reason})


def _under_way(outputs: Path, name: str, instead: str) -> tuple[RunFolder, RunConfig]:
    folder, state = load_run(outputs, name)
    attempt = state.live_attempt
    if attempt is None or state.must_be_killed:
        raise RunError(f"{name} is not running (it is {state.state})")
    config = parse_saved(state.served_config(attempt))
    if config.trainer in HEAR_NO_WISHES:
        raise RunError(f"{config.trainer} can't be asked for this while it runs; it {instead}")
    return folder, config


def set_monitoring(outputs: Path, name: str, source: str, enabled: bool) -> Event:
    """Switch verdicts and kills off or on for the run; sampling goes on either way."""
    folder, _ = load_run(outputs, name)
    return append_event(folder, source, "monitoring.changed", {"enabled": enabled})


def refresh_ui_state(folder: RunFolder, state: RunState | None = None) -> None:
    """Write `ui_state.json`, the last config in the seed's form with the folded state. Derived: never read back."""
    state = state or fold(folder.name, read_events(folder.path))
    try:
        config = parse_saved(state.config)
    except ConfigError:
        return
    export: dict[str, Any] = to_export(config, state.state)
    write_atomic(folder.ui_state, orjson.dumps(export, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _changed(state: RunState, settings: Mapping[str, Any] | None) -> RunConfig:
    """The run's config with `settings` changed; a memory preset among them brings what it sets along."""
    saved = parse_saved(state.config)
    if not settings:
        return saved
    if "lora_name" in settings:
        raise ConfigError("a run keeps its name; make another one with `new`", {"lora_name": "a run keeps its name"})
    preset = memory_preset(str(settings.get("vram")), str(settings.get("base_model", saved.base_model)))
    return parse_config({**saved.model_dump(), **preset, **settings, "lora_name": state.name})


def _request(
    folder: RunFolder, state: RunState, source: str, resume_from: str | None, reason: str, config: RunConfig
) -> Event:
    """Ask for an attempt with `config`, which is saved first where it is not what the log has."""
    named = state.config_id
    if config != parse_saved(state.config):
        named = append_event(folder, source, "config.saved", saved_config(config)).id
    asked = append_event(
        folder, source, "run.requested", {"config": named, "resume_from": resume_from, "reason": reason}
    )
    if named != state.config_id:
        _refresh(folder)
    return asked


def append_event(folder: RunFolder, source: str, type: str, data: dict[str, Any]) -> Event:
    """Append one event of a person's to a run's log. Raises RunError where it can't be written."""
    return _write(EventLog(folder.path, source), type, data)


def _write(log: EventLog, type: str, data: dict[str, Any]) -> Event:
    try:
        with log:
            return log.append(type, data)
    except OSError as error:
        raise RunError(f"the event log of {log.run} can't be written ({error.strerror}); nothing was asked") from None
    except EventError as error:
        raise RunError(f"this can't be saved for {log.run}: {error}; use shorter texts and smaller numbers") from None


def _refresh(folder: RunFolder) -> None:
    """A derived file's trouble takes nothing back of what the log has."""
    try:
        refresh_ui_state(folder)
    except OSError as error:
        logger.warning("%s: ui_state.json can't be written: %s", folder.name, error)


def _refuse_live(state: RunState) -> None:
    if state.must_be_killed:
        raise RunError(f"{state.name} was stuck and is being ended; try again in a moment")
    if state.is_busy:
        raise RunError(f"{state.name} is already {state.state}; stop it first")


def _refuse_other_rank(
    folder: RunFolder, state: RunState, chosen: CheckpointFile, config: RunConfig, from_state: str | None
) -> None:
    # Another LyCORIS rank need not be another shape; and a folder that the log doesn't know may be another run's.
    recorded = state.checkpoints.get(chosen.name)
    writer = next((one for one in state.attempts if recorded and one.number == recorded.attempt), None)
    was = state.served_config(writer) if writer else {}
    rank = was.get("network_dim")
    if rank in (None, config.network_dim) or {was.get("network_algo", "lora"), config.network_algo} != {"lora"}:
        return
    state_too = ["--from", chosen.name] if from_state not in (None, "", "latest") else []
    keep = command("resume", folder, *state_too, "--set", f"network_dim={rank}")
    afresh = command("start", folder, "--restart", "--set", f"network_dim={config.network_dim}")
    raise RunError(
        f"{chosen.name} is of rank {rank}, and a checkpoint keeps its rank: resume with `{keep}`, or begin afresh with "
        f"`{afresh}`"
    )


def _refuse_empty(folder: RunFolder, config: RunConfig) -> None:
    # Pictures that a dataset_config names are the trainer's to find.
    if not list_pictures(folder.dataset) and not config.dataset_config:
        raise RunError(f"{folder.name} has no pictures; put some into {folder.dataset}")
