"""Saving and loading a training's state: sd-scripts' layout, whole or absent, the LoRA and its optimizer only."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
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
from fluxcore.runs.files import RunFolder

from .failures import Exit, TrainingError

WEIGHTS_FILE = "model.safetensors"
FULL_DISK_BYTES = 1024 * 1024


def lora_state(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The LoRA's tensors by peft's names, on the CPU."""
    return {name: value.detach().cpu() for name, value in get_peft_model_state_dict(transformer).items()}


def keep_states_small(accelerator: Accelerator, transformer: torch.nn.Module) -> None:
    """Make `accelerator.save_state` write the transformer's LoRA, by its own names, and nothing of the base."""

    def only_lora(models: list[torch.nn.Module], weights: list[dict[str, Any]], output_dir: str) -> None:
        weights[:] = [lora_state(transformer)]

    def leave_to_us(models: list[torch.nn.Module], input_dir: str) -> None:
        models.clear()

    accelerator.register_save_state_pre_hook(only_lora)
    accelerator.register_load_state_pre_hook(leave_to_us)


def save_state(
    accelerator: Accelerator,
    folder: RunFolder,
    target: Path,
    epoch: int,
    step: int,
    attempt: int | None,
    more: Iterable[Callable[[Path], None]] = (),
) -> int:
    """Write the state folder `target` aside and rename it; returns its bytes. Raises OSError with nothing left over.

    `attempt` writes it; `more` write files of their own into it. `train_state.json` is written first and accelerate's
    `random_states_0.pkl` last, as in sd-scripts.
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
        if isinstance(error, RuntimeError | SafetensorError) and free < FULL_DISK_BYTES:
            # torch and safetensors report a full disk without its errno
            raise OSError(errno.ENOSPC, "the disk is full", str(target)) from None
        raise
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def load_state(
    accelerator: Accelerator,
    transformer: torch.nn.Module,
    optimizer: AcceleratedOptimizer,
    scheduler: AcceleratedScheduler,
    path: Path,
) -> int:
    """Load a state folder into the LoRA, optimizer and scheduler; returns the step after which it was saved.

    The learning rate and its schedule are those of the config, not of the state; another optimizer than the state's
    begins without memory of the steps before. Raises TrainingError where the folder is torn or belongs to another LoRA.
    Nothing is unpickled but by `weights_only`.
    """
    try:
        step = int(json.loads((path / "train_state.json").read_text())["current_step"])
        tensors = load_file(path / WEIGHTS_FILE)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainingError(Exit.BAD_CONFIG, f"the checkpoint {path.name} can't be read ({error})") from None
    ours = get_peft_model_state_dict(transformer)
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in ours.items()}:
        raise TrainingError(
            Exit.BAD_CONFIG,
            f"the checkpoint {path.name} holds {_describe(tensors)}, the config asks for {_describe(ours)}: "
            "set network_dim as it was, or start afresh",
        )
    set_peft_model_state_dict(transformer, tensors)
    fresh = optimizer.state_dict()
    try:
        accelerator.load_state(str(path))
    except (OSError, RuntimeError, ValueError, KeyError, IndexError, EOFError) as error:
        raise TrainingError(Exit.BAD_CONFIG, f"the checkpoint {path.name} can't be read ({error})") from None
    if not fresh["param_groups"][0].keys() <= optimizer.param_groups[0].keys():
        optimizer.load_state_dict(fresh)
    _set_rate(optimizer, scheduler.scheduler, fresh["param_groups"][0]["initial_lr"])
    return step


def _set_rate(optimizer: AcceleratedOptimizer, schedule: LambdaLR, rate: float) -> None:
    """Make `rate` the base of the schedule, at the step at which that stands. Unchanged settings change nothing."""
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = rate, rate * factor(schedule.last_epoch)
    schedule.base_lrs = [rate for _ in optimizer.param_groups]
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def _describe(tensors: dict[str, torch.Tensor]) -> str:
    ranks = sorted({value.shape[0] for name, value in tensors.items() if ".lora_A." in name})
    return f"a LoRA of rank {', '.join(map(str, ranks)) or '?'} on {len(tensors) // 2} layers"
