"""A config's plan: what each phase of its training takes of the GPU, the arithmetic of a step, disk and time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxcore.atomic import write_atomic
from fluxcore.models.held import held, swapped_blocks
from fluxcore.models.lora_size import lora_size
from fluxcore.models.registry import find_model
from fluxcore.runs.disk import DiskNeeds, estimate_disk
from fluxcore.runs.files import PROJECT_ROOT
from fluxcore.units import gib

from .hardware import BUS_BYTES, CONTEXT_BYTES, UTILISATION, Gpu
from .request import request_of
from .shapes import PlanError

if TYPE_CHECKING:
    from fluxcore.config import RunConfig

MEASURE = 3
"""Raised whenever measure.py gives other numbers for the same request."""

SECONDS = 600
MOST_TRIES = 4
OPTIMIZER_BYTES = {
    "adamw": 8.0,
    "adamw8bit": 2.0,
    "paged_adamw8bit": 2.0,
    "lion": 4.0,
    "prodigy": 16.0,
    "adamwschedulefree": 8.0,
}
"""Of an optimizer's state for each trained value; Adafactor keeps a row and a column of each matrix."""

MOST_SWAPPED = 35
RESERVE = "allocator's reserve"
"""The part's name: what PyTorch's allocator has of the GPU and no tensor uses at the peak, at least."""


@dataclass(frozen=True)
class Phase:
    """Bytes on the GPU in one phase of a training, part by part. `spare`: what the allocator takes besides where there
    is room, and does without where there is none."""

    name: str
    parts: dict[str, int]
    spare: int = 0

    @property
    def total(self) -> int:
        """Bytes that it needs: of all parts together."""
        return sum(self.parts.values())

    @property
    def shown(self) -> int:
        """Bytes that nvidia-smi shows of it on a GPU that has them."""
        return self.total + self.spare


@dataclass(frozen=True)
class Plan:
    """What a training needs. Bytes; `step_flops`: floating point operations of one optimizer step on one GPU.

    A step trains `batches` of them one after the other on each GPU; where they differ, each counts as the largest.
    """

    phases: tuple[Phase, ...]
    parameters: int
    lora_parameters: int
    step_flops: float
    swapped_bytes: int
    host_bytes: int
    steps: int
    disk: DiskNeeds
    checkpointing: bool
    batches: int = 1

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    def fits(self, size: int) -> bool:
        """Whether every phase fits into `size` bytes."""
        return self.peak.total <= size

    def step_seconds(self, gpu: Gpu) -> float:
        """Seconds of a step on `gpu`: arithmetic at the stated utilisation, and swapped blocks over the bus.

        They cross it in each batch once forward, once backward, and once more where the forward is done again for it.
        """
        uses = (3 if self.checkpointing else 2) * self.batches
        return self.step_flops / (gpu.tflops * 1e12 * UTILISATION) + uses * self.swapped_bytes / BUS_BYTES


def plan(config: RunConfig, pictures: int, outputs: Path, *, wait: bool = True) -> Plan | None:
    """The plan of `config` with so many pictures.

    A new combination of model, size and precision takes 15 to 60 seconds in a process of its own; `outputs/.plans`
    keeps it. With `wait` false that goes on behind, and None is the answer meanwhile: for a form that asks again.
    Raises PlanError where the model's shape is not known, or the measuring fails.
    """
    request = request_of(config)
    keep = _place(outputs, request)
    if not wait and _read(keep) is None:
        if keep.name in _failed:
            raise PlanError(_failed[keep.name])
        _later(request, keep)
        return None
    return make_plan(config, pictures, measure_kept(request, outputs))


def measure_kept(request: dict[str, Any], outputs: Path) -> dict[str, Any]:
    """measure.py's answer, the kept one where there is one. Raises PlanError."""
    keep = _place(outputs, request)
    found = _read(keep)
    if found is None:
        found = measured(request)
        _keep(keep, found)
    return found


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """measure.py's answer, from a process of its own. Raises PlanError."""
    command = [sys.executable, "-m", "fluxcore.planner.measure"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT_ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
    }
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, env=environment, timeout=SECONDS
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise PlanError(f"the planner's process gave no answer: {error}") from None
    if not isinstance(answer, dict):
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PlanError(f"the planner's process failed: {last}")
    return answer


def make_plan(config: RunConfig, pictures: int, found: dict[str, Any]) -> Plan:
    """The plan out of measure.py's answer for `request_of(config)`."""
    transformer = request_of(config)["transformer"]
    away = swapped_blocks(config.blocks_to_swap, transformer["num_layers"], transformer["num_single_layers"])
    swapped = away[0] * found["double_bytes"] + away[1] * found["single_bytes"]
    values = found["lora_parameters"]
    lora = 4 * values
    optimizer = 4 * found["lora_edges"]
    if config.optimizer_type != "adafactor":
        optimizer = int(OPTIMIZER_BYTES[config.optimizer_type] * values)
    context = {"CUDA context": CONTEXT_BYTES}
    kept = found["base_bytes"] - swapped
    if config.shard_base:  # a share of it, and two double blocks put together: the one in use and the next
        kept = kept // config.processes + 2 * found["double_bytes"]
    average = {"its average": lora} if config.ema_decay else {}
    base = {"base model": kept, "LoRA": lora, "its optimizer": optimizer, **average}
    copy = {"copy of a swapped layer": found["largest_bytes"]} if swapped else {}
    vae = found["vae_bytes"]
    least, most = found["encode_reserve"]
    encoding = {"its activations": found["encode_bytes"], RESERVE: least}
    phases = [Phase("pictures", {"VAE": vae, **encoding, **context}, most - least)]
    if not config.encode_on_cpu:
        text = {"text encoders": found["text_bytes"], "their activations": found["text_peak_bytes"]}
        phases.insert(0, Phase("captions", {**text, **context}))
    least, most = found["train_reserve"]
    active = {"gradients": lora, "activations": found["train_bytes"], RESERVE: least}
    phases.append(Phase("train", {**base, **active, **copy, **context}, most - least))
    if config.sample_every_n_steps and config.sample_prompts.strip():
        part = max(("sample", "decode"), key=lambda part: found[f"{part}_bytes"] + found[f"{part}_reserve"][0])
        least, most = found[f"{part}_reserve"]
        drawing = {"VAE": vae, "activations": found[f"{part}_bytes"], RESERVE: least}
        # What is drawn is not what is trained (averages.py), so that waits beside it.
        other = {"its trained weights": lora} if average or config.optimizer_type == "adamwschedulefree" else {}
        phases.append(Phase("sample", {**base, **other, **drawing, **copy, **context}, most - least))
    model = find_model(config.base_model)
    bytes_of = {"no": 4, "bf16": 2, "fp16": 2}[config.mixed_precision]
    return Plan(
        phases=tuple(phases),
        parameters=found["parameters"],
        lora_parameters=values,
        step_flops=found["step_flops"] * config.gradient_accumulation_steps,
        swapped_bytes=swapped,
        host_bytes=max(found["parameters"] * bytes_of * config.processes, found["text_bytes"]),
        steps=config.total_steps(pictures) if pictures or config.max_train_steps else 0,
        disk=estimate_disk(config, pictures, lora_size(model)),
        checkpointing=config.gradient_checkpointing,
        batches=config.gradient_accumulation_steps,
    )


def verdict(config: RunConfig, made: Plan, size: int, advised: tuple[dict[str, Any], bool] | None = None) -> str:
    """Whether it fits a GPU of `size` bytes, and what to change where it does not: a sentence.

    `advised`: what `proven_advice` found; without it `advice` is taken.
    """
    peak = made.peak
    need = f"it needs {gib(peak.total)} at its peak ({peak.name}), the GPU has {gib(size)}"
    if made.fits(size):
        tight = "; that is tight, because PyTorch would rather take {} and the libraries' workspaces are not in it"
        most = max(phase.shown for phase in made.phases)
        return f"fits: {need}{tight.format(gib(most)) if most > size or peak.total > 0.93 * size else ''}"
    changes, enough = advised or advice(config, made, size)
    if not changes:
        return f"does not fit: {need}, and no setting would help"
    words = ", ".join(f"{name}={str(value).lower()}" for name, value in changes.items())
    return f"does not fit: {need}; {'set' if enough else 'even this may not do:'} {words}"


def advice(config: RunConfig, made: Plan, size: int) -> tuple[dict[str, Any], bool]:
    """Settings that would make it fit, the cheapest in time first, and whether they are enough by this plan's parts."""
    by_name = {phase.name: phase for phase in made.phases}
    changes: dict[str, Any] = {}
    enough = True
    if "captions" in by_name and by_name["captions"].total > size:
        changes["encode_on_cpu"] = True
    if by_name["pictures"].total > size:
        if max(config.more_resolutions, default=0) > config.resolution:
            changes["extra_resolutions"] = ""
        else:
            changes["resolution"] = max(64, config.resolution // 2 // 64 * 64)
    if (over := by_name["train"].total - size) > 0:
        more, enough = _train_advice(config, made, over)
        changes |= more
    if "sample" in by_name and by_name["sample"].total > size and "blocks_to_swap" not in changes:
        changes["sample_every_n_steps"] = 0
    return changes, enough


def proven_advice(
    config: RunConfig, made: Plan, size: int, pictures: int, outputs: Path
) -> tuple[dict[str, Any], bool]:
    """The same, planned with these settings and mended until that fits: seconds for each plan."""
    from fluxcore.config import ConfigError, parse_config

    changes, enough = advice(config, made, size)
    for _ in range(MOST_TRIES):
        try:
            changed = parse_config({**config.model_dump(), **changes})
        except ConfigError:  # another setting forbids it
            return changes, False
        planned = plan(changed, pictures, outputs) if changes else None
        if planned is None or planned.fits(size):
            return changes, enough
        more, enough = advice(changed, planned, size)
        if not more:
            return changes, False
        changes |= more
    return changes, False


def _train_advice(config: RunConfig, made: Plan, over: int) -> tuple[dict[str, Any], bool]:
    parts = next(phase.parts for phase in made.phases if phase.name == "train")
    base, active = parts["base model"] + made.swapped_bytes, parts["activations"]
    changes: dict[str, Any] = {}

    def save(name: str, value: Any, saved: float) -> None:
        nonlocal over
        if over > 0 and saved > 0:
            changes[name] = value
            over -= int(saved)

    if not config.gradient_checkpointing:  # what remains is a block's, and the inputs of all: less than a fifth
        save("gradient_checkpointing", True, 0.8 * active)
        active = int(0.2 * active)
    elif (interval := config.gradient_checkpointing_interval) > 1:  # the blocks between keep all that they need
        save("gradient_checkpointing_interval", 1, 0.8 * active * (1 - 1 / interval))
        active = int(active * (0.2 + 0.8 / interval))
    if config.train_batch_size > 1:
        save("train_batch_size", 1, active * (1 - 1 / config.train_batch_size))
    left = base
    if held(config) == "none" and config.mixed_precision != "no":
        save("fp8_base", True, base / 2)
        left = base // 2 if "fp8_base" in changes else base
    transformer = request_of(config)["transformer"]
    every = max(2 * transformer["num_layers"], transformer["num_single_layers"])
    most = min(MOST_SWAPPED, every)
    if over > 0 and config.blocks_to_swap < most:
        each = left / every  # FLUX.1's 19 double and 38 single blocks are all away at 38
        wanted = config.blocks_to_swap + math.ceil(over / each)
        save("blocks_to_swap", min(most, wanted), (min(most, wanted) - config.blocks_to_swap) * each)
    return changes, over <= 0


@cache
def _versions() -> dict[str, str]:
    """Of what the numbers come from."""
    versions = {"measure": str(MEASURE)}
    for package in ("torch", "diffusers", "peft", "transformers", "torchao"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _place(outputs: Path, request: dict[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps([request, _versions()], sort_keys=True).encode()).hexdigest()[:24]
    return outputs / ".plans" / f"{key}.json"


def _read(keep: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(keep.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "train_bytes" in found else None


def _keep(keep: Path, found: dict[str, Any]) -> None:
    try:
        keep.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(keep, json.dumps(found).encode())
    except OSError:
        pass  # it is measured again next time


_measuring: set[str] = set()
_failed: dict[str, str] = {}


def _later(request: dict[str, Any], keep: Path) -> None:
    """Measure in a thread, once for each request, one at a time: a form that asks again gets its turn then."""
    if keep.name in _measuring or any(thread.name == "planner" for thread in threading.enumerate()):
        return
    _measuring.add(keep.name)

    def work() -> None:
        try:
            _keep(keep, measured(request))
        except PlanError as error:
            _failed[keep.name] = str(error)  # a form that asks every second must not start it anew
        _measuring.discard(keep.name)

    start: Callable[[], None] = threading.Thread(target=work, name="planner", daemon=True).start
    start()
