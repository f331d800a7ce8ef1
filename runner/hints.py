"""What to do after a failure, said with the run's own settings and what was seen of its machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fluxcore.config import VRAM_PRESETS

from .watch import GpuTrouble

MOST_IDEAS = 3
TIGHT_MEMORY_GIB = 0.5

_BROKEN = "restart the machine, and rent another GPU where that comes again"
XIDS = {
    46: ("stopped working", _BROKEN),
    48: ("had a memory error that can't be corrected", _BROKEN),
    61: ("had an error inside", _BROKEN),
    62: ("had an error inside", _BROKEN),
    64: ("could not mend its memory", _BROKEN),
    74: ("had an error on its link to another GPU", _BROKEN),
    79: ("fell off the bus", "restart the machine or rent another GPU"),
    92: ("had many memory errors", _BROKEN),
    94: ("had a memory error in this training", "rent another GPU where that comes again"),
    95: ("had a memory error that it could not contain", _BROKEN),
    109: ("stopped answering", _BROKEN),
    110: ("had an error of its own security unit", _BROKEN),
    119: ("stopped answering its driver", _BROKEN),
    120: ("had an error in its own firmware", _BROKEN),
    140: ("had a memory error that can't be corrected", _BROKEN),
    143: ("could not be set up", _BROKEN),
}
"""NVIDIA's numbers for errors that a program can't have caused: what befell the GPU, and what helps."""


ANOTHER_PROGRAM = "Another program"


@dataclass(frozen=True)
class Facts:
    """What is known beside the exit itself.

    `oom_kills`: how many processes the kernel killed for want of memory shortly before, None where not known; `again`:
    what a person does next, "resume" or "start again with --restart"; `earlier`: a whole state before the newest.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    gpus: Mapping[str, GpuTrouble] = field(default_factory=dict)
    gpu_memory_gib: float | None = None
    memory_available_gib: float | None = None
    oom_kills: int | None = None
    again: str = "start again"
    earlier: str | None = None


def gpu_trouble(gpus: Mapping[str, GpuTrouble]) -> str | None:
    """What befell a GPU and what helps, without an end to the sentence; None where nothing did."""
    for gpu in gpus.values():
        name = f"GPU {gpu.index}" + (f" ({gpu.name})" if gpu.name else "")
        xid = next((code for code in (79, *reversed(gpu.xids)) if code in gpu.xids and code in XIDS), None)
        if xid is not None:
            what, helps = XIDS[xid]
            return f"{name} {what} (XID {xid}): {helps}"
        if gpu.problem == "lost":
            return f"{name} is lost, its driver can't reach it any more: restart the machine or rent another GPU"
        if gpu.ecc:
            return f"{name} had {gpu.ecc} memory errors that can't be corrected: {_BROKEN}"
    for gpu in gpus.values():
        if gpu.problem == "no_answer":
            return f"GPU {gpu.index}'s driver gave no answer: restart the machine where nvidia-smi gives none either"
    return None


def lower_memory(facts: Facts, text: str) -> str:
    """What to lower so that the training fits into the GPU. `text`: what PyTorch said.

    In a container NVML gives the host's pids: PyTorch then lists its own process as another one and says nothing of
    this one, so who the others are is believed only beside what "this process has".
    """
    lines = [line for line in text.splitlines() if "this process has" in line]
    others = re.findall(r"Process (\d+) has ([\d.]+) GiB memory in use", "\n".join(lines))
    if others:
        pid, gib = max(others, key=lambda other: float(other[1]))
        return f"{ANOTHER_PROGRAM} (pid {pid} in nvidia-smi) holds {gib} GiB of the GPU: end it, then {facts.again}."
    config, ideas = facts.config, []
    size = f" ({facts.gpu_memory_gib:.0f} GiB)" if facts.gpu_memory_gib else ""
    batch, resolution = _whole(config, "train_batch_size"), _whole(config, "resolution")
    rank = _whole(config, "network_dim")
    fitting = [name for name in VRAM_PRESETS if int(name[:-1]) <= (facts.gpu_memory_gib or 0) + 1]
    preset = str(config.get("vram") or "")
    if fitting and preset in VRAM_PRESETS and int(preset[:-1]) > int(fitting[-1][:-1]):
        ideas.append(f"choose the preset {fitting[-1]} (it is {preset})")
    if batch and batch > 1:
        ideas.append(f"lower train_batch_size from {batch} to {batch // 2}")
    if config.get("gradient_checkpointing") is False:
        ideas.append("switch gradient_checkpointing on")
    elif (interval := _whole(config, "gradient_checkpointing_interval")) and interval > 1:
        ideas.append(f"lower gradient_checkpointing_interval from {interval} to 1")
    if resolution and resolution > 512:
        ideas.append(f"lower resolution from {resolution} to {next(r for r in (1024, 768, 512) if r < resolution)}")
    if config.get("optimizer_type") == "adamw":
        ideas.append("set optimizer_type to adafactor")
    if rank and rank > 32 and facts.again != "resume":  # a checkpoint holds a LoRA of its own rank
        ideas.append(f"lower network_dim from {rank} to 32")
    ideas = ideas[:MOST_IDEAS] or ["take a GPU with more memory"]
    return f"The GPU's memory{size} was too small: {', or '.join(ideas)}, then {facts.again}."


def lower_rate(facts: Facts) -> str:
    """What to do about a loss that is no number."""
    try:
        rate = float(facts.config["learning_rate"])
        what = f"lower learning_rate from {facts.config['learning_rate']} to {_plain(rate / 4)}"
    except (KeyError, TypeError, ValueError):
        what = "lower learning_rate to a quarter"
    if facts.config.get("mixed_precision") == "fp16":
        what += " (and set mixed_precision to bf16)"
    if facts.earlier:
        what += f", then resume from a checkpoint before the last, such as {facts.earlier}"
    else:
        what += f", then {facts.again}"
    return f"The loss is no longer a number: {what}."


def tight_memory(facts: Facts) -> str:
    """A remark on a machine whose memory was nearly used up; "" where it was not, or that is not known."""
    left = facts.memory_available_gib
    if left is None or left > TIGHT_MEMORY_GIB:
        return ""
    return f" (it had {left:.1f} GiB of memory left, so the system may have done it: lower workers and batch size)"


def _plain(value: float) -> str:
    """One digit as people write rates: `2e-4`, `0.3`, `2`."""
    return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 0.01 else f"{float(f'{value:.1g}'):g}"


def _whole(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
