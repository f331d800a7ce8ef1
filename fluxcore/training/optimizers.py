"""The optimizers and the learning rate's schedule.

Each optimizer is from the library that its authors keep; what isn't installed is asked for in a sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LambdaLR

from fluxcore.config import RunConfig
from fluxcore.config.arguments import parse_optimizer_args
from fluxcore.models.hidden import show

from .failures import Exit, TrainingError

# Name -> the module and class that serve it, the package to install, and arguments that sd-scripts' users expect.
_LIBRARIES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "adamw": ("torch.optim", "AdamW", "torch", {}),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes", {}),
    "paged_adamw8bit": ("bitsandbytes.optim", "PagedAdamW8bit", "bitsandbytes", {}),
    "adafactor": (
        "transformers.optimization",
        "Adafactor",
        "transformers",
        {"relative_step": False, "scale_parameter": False, "warmup_init": False},
    ),
    "prodigy": ("prodigyopt", "Prodigy", "prodigyopt", {}),
    "lion": ("lion_pytorch", "Lion", "lion-pytorch", {}),
    "adamwschedulefree": ("schedulefree", "AdamWScheduleFree", "schedulefree", {}),
}


def make_optimizer(config: RunConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The config's optimizer over `parameters`. Raises TrainingError where its package is missing or it can't run."""
    name = config.optimizer_type
    if name.startswith("paged_") and not all(parameter.is_cuda for parameter in parameters):
        raise _refused(f"optimizer_type {name} needs an NVIDIA GPU, whose memory it shares: choose adamw8bit")
    module, attribute, package, arguments = _LIBRARIES[name]
    show(package)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which of its optional kernels are not installed
    try:
        kind: Callable[..., torch.optim.Optimizer] = getattr(import_module(module), attribute)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]:
            raise _refused(f"optimizer_type {name} needs a package that is not here: pip install {package}") from None
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _refused(f"optimizer_type {name} can't be used on this machine ({why}): choose adamw") from None
    try:
        given = {**arguments, **parse_optimizer_args(config.optimizer_args)}
        if name == "adamw" and not {"fused", "foreach"} & given.keys() and all(one.is_cpu for one in parameters):
            given["fused"] = True  # one by one flux-mini's 104 matrices take 3.8 ms of a step, together 0.7
        return kind(parameters, lr=config.rate, **given)
    except (TypeError, ValueError) as error:
        raise _refused(f"optimizer_args don't suit {name} ({error}): mend or empty them") from None


def make_schedule(config: RunConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
    """The config's learning rate over all steps, as diffusers and sd-scripts build it."""
    schedule: LambdaLR = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=total_steps,
        num_cycles=config.lr_scheduler_num_cycles,
        power=config.lr_scheduler_power,
    )
    return schedule


def effective_rate(optimizer: torch.optim.Optimizer, scheduled: float) -> float:
    """The learning rate in use: Prodigy multiplies the scheduled one by the distance that it estimates."""
    return scheduled * float(optimizer.param_groups[0].get("d", 1.0))


def _refused(sentence: str) -> TrainingError:
    return TrainingError(Exit.BAD_CONFIG, sentence)
