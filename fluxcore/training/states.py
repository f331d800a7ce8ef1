"""Saving and loading a training's state: sd-scripts' layout, whole or absent, the LoRA and its optimizer only."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR

from fluxcore.atomic import free_name, sync_folder, sync_tree
from fluxcore.runs.exits import RESUME_WITH
from fluxcore.runs.files import RunFolder
from fluxcore.runs.state_files import StateDamaged, read_about, write_about

from .failures import Exit, TrainingError
from .state_form import StateForm, counted_steps, moments, peft_name

WEIGHTS_FILE = "model.safetensors"
FULL_DISK_BYTES = 1024 * 1024
_UNREADABLE = (OSError, RuntimeError, ValueError, IndexError, EOFError, UnpicklingError)


def lora_state(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The LoRA's tensors by peft's names, on the CPU."""
    return {name: value.detach().cpu() for name, value in get_peft_model_state_dict(transformer).items()}


def keep_states_small(accelerator: Accelerator, transformer: torch.nn.Module, form: StateForm) -> None:
    """Make `accelerator.save_state` write the transformer's LoRA, as `form` has it, and nothing of the base."""

    def only_lora(models: list[torch.nn.Module], weights: list[dict[str, Any]], output_dir: str) -> None:
        weights[:] = [form.write(lora_state(transformer))]

    accelerator.register_save_state_pre_hook(only_lora)


def save_state(
    accelerator: Accelerator,
    folder: RunFolder,
    target: Path,
    epoch: int,
    step: int,
    attempt: int | None,
    more: Iterable[Callable[[Path], None]] = (),
    base: str = "",
    network: Mapping[str, Any] | None = None,
) -> int:
    """Write the state folder `target` aside and rename it; returns its bytes. Raises OSError with nothing left over.

    `attempt` writes it; `more` write files of their own into it; `base` names the base model, `network` the settings of
    what is trained. `train_state.json` is written first and accelerate's `random_states_0.pkl` last, as in sd-scripts,
    then the list of them all.
    """
    aside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        where = {"current_epoch": epoch, "current_step": step, "attempt": attempt}  # the first two are sd-scripts'
        (aside / "train_state.json").write_text(json.dumps({k: v for k, v in where.items() if v is not None}))
        for write in more:
            write(aside)
        accelerator.save_state(str(aside))
        write_about(aside, folder.name, base, network)
        sync_tree(aside)
        if target.exists():  # a rename onto a folder fails; what lies there is kept
            kept = free_name(folder.superseded / target.name)
            kept.parent.mkdir(parents=True, exist_ok=True)
            os.rename(target, kept)
        os.rename(aside, target)
        sync_folder(target.parent)
    except BaseException as error:
        free = shutil.disk_usage(target.parent).free
        shutil.rmtree(aside, ignore_errors=True)
        full = free < FULL_DISK_BYTES or "os error 28" in str(error)
        if isinstance(error, RuntimeError | SafetensorError) and full:
            # torch and safetensors report a full disk without its errno
            raise OSError(errno.ENOSPC, "the disk is full", str(target)) from None
        raise
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


@dataclass(frozen=True)
class Resumed:
    """What a state gave: the `step` after which it was saved, and `notices`, a sentence for each thing it could not."""

    step: int
    theirs: bool = False
    fresh: bool = False
    notices: tuple[str, ...] = ()


def load_state(
    transformer: torch.nn.Module,
    form: StateForm,
    optimizer: AcceleratedOptimizer,
    scheduler: AcceleratedScheduler,
    path: Path,
    base: str = "",
    run: str = "",
    network: Mapping[str, Any] | None = None,
) -> Resumed:
    """Load a state folder, ours or sd-scripts', into the LoRA, optimizer and scheduler.

    The learning rate and its schedule are those of the config, not of the state; another optimizer than the state's
    begins without memory of the steps before, as does one whose moments are of a LoRA that is built otherwise. Another
    base model and another run than the present ones (`base`, `run`) are told, another `network` is refused. Raises
    TrainingError where the folder is torn or belongs to another LoRA. Nothing is unpickled but by `weights_only`.
    """
    try:
        about = read_about(path)
    except StateDamaged as error:
        raise TrainingError(Exit.BAD_CONFIG, f"the checkpoint {path.name} can't be read ({error})") from None
    other_base = (
        f"it was trained on {about.base_model}, the base model is {base} now"
        if base and about.base_model not in ("", base)
        else ""
    )
    named = [name for name, value in transformer.named_parameters() if value.requires_grad]
    ours = get_peft_model_state_dict(transformer)
    try:
        where = json.loads((path / "train_state.json").read_text())
        step = int(where["current_step"])
        tensors = load_file(path / WEIGHTS_FILE)
        saved, schedule = (_load(path / f"{name}.bin") for name in ("optimizer", "scheduler"))
        _same_network(about.network, network or {})
        found = form.read(tensors, ours, named)
        counted = counted_steps(saved)
    except TrainingError as error:
        why = f"{other_base}; {error}" if other_base else error
        raise TrainingError(
            Exit.BAD_CONFIG, f"the checkpoint {path.name} doesn't fit: {why}, or start afresh"
        ) from None
    except (*_UNREADABLE, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise TrainingError(Exit.BAD_CONFIG, f"the checkpoint {path.name} can't be read ({error})") from None
    set_peft_model_state_dict(transformer, found.lora)
    theirs = found.fused and "attempt" not in where  # ours say which attempt wrote them
    notices = [f"{other_base}: the training goes on on that"] if other_base else []
    if run and about.run not in ("", run):
        notices.insert(0, f"it is a checkpoint of the run {about.run}")
    if counted > step:  # sd-scripts begin their count anew when they resume; the optimizer goes on with its own
        notices.append(f"it says step {step}, its optimizer has made {counted}: the training goes on there")
        step = counted
    if found.skip:
        notices.append("its LoRA of the text encoder is left out: only the transformer's is trained here")
    fresh = optimizer.state_dict()
    order = [peft_name(name) for name in form.in_order(dict.fromkeys(named))]
    kept = moments(saved, found, order, {name: value.shape for name, value in ours.items()})
    try:
        if kept is not None:
            optimizer.load_state_dict(kept)
    except (RuntimeError, ValueError, KeyError, IndexError):
        kept = None
    if kept is None or not fresh["param_groups"][0].keys() <= optimizer.param_groups[0].keys():
        optimizer.load_state_dict(fresh)
        kept = None
        why = "its moments are of another optimizer"
        if found.order is None:
            why = "its LoRA has one down for q, k and v (split_qkv gives each its own)"
        notices.append(f"the optimizer begins without memory of the steps before: {why}")
    if theirs:
        scheduler.scheduler.last_epoch, scheduler.scheduler._step_count = step, step + 1
    else:
        scheduler.load_state_dict(schedule)
    _set_rate(optimizer, scheduler.scheduler, fresh["param_groups"][0]["initial_lr"])
    return Resumed(step, theirs, kept is None, tuple(notices))


def _same_network(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises TrainingError where the weights would add something else. What one of the two doesn't tell is the same."""
    other = {name: value for name, value in before.items() if now.get(name, value) != value}
    if other:
        said = ", ".join(f"{name} is {_value(value)}" for name, value in other.items())
        wanted = " ".join(f"--set {name}={_value(value)}" for name, value in other.items())
        raise TrainingError(Exit.BAD_CONFIG, f"its {said}: {RESUME_WITH} `{wanted}`")


def _value(value: object) -> str:
    """As the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _load(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return found


def _set_rate(optimizer: AcceleratedOptimizer, schedule: LambdaLR, rate: float) -> None:
    """Make `rate` the base of the schedule, at the step at which that stands. Unchanged settings change nothing."""
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = rate, rate * factor(schedule.last_epoch)
    schedule.base_lrs = [rate for _ in optimizer.param_groups]
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
