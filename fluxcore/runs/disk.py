"""What a training will write, whether that fits, and when to stop it before the disk is full. Pure, no torch.

Sizes are bytes. The estimate is close (a few percent) for FLUX's LoRAs; of other models nothing is known beforehand.
Once a run has written a checkpoint, the size of that one counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluxcore.units import gib

if TYPE_CHECKING:
    from fluxcore.config import RunConfig
    from fluxcore.models.lora_size import LoraSize

RESERVE_BYTES = 64 << 20
"""Kept free for logs, events and the words about a stop."""

UNKNOWN_BYTES = 512 << 20
"""What a checkpoint is taken to need where neither an estimate nor an earlier one tells."""

MARGIN = 1.1
REACTION_SECONDS = 15.0
"""From one look at the disk to a trainer that has begun to save."""
WARN_SECONDS = 600.0

_FLOAT_BYTES = 4
_OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "paged_adamw8bit": 2, "lion": 4, "prodigy": 16, "adamwschedulefree": 8}
"""A trained value's; sd-scripts' adamw is adamw8bit, as in FluxGym's presets."""
_BYTES_A_LAYER = 2048
"""Names, headers, generators: beside the values themselves."""
_BYTES_A_STEP = 500
_BYTES_A_PIXEL = 1.5
_LATENT_CHANNELS, _T5_VALUES = 16, 512 * 4096
"""Of a picture and of its caption, as sd-scripts keep them in 32-bit floats."""
_FILE_BYTES = {"float": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class DiskNeeds:
    """What a training writes: one state, one LoRA file, and all of it at its peak (None where not known)."""

    state: int | None = None
    weights: int | None = None
    total: int | None = None

    @property
    def next_save(self) -> int:
        """State and LoRA of the next checkpoint."""
        if self.state is None or self.weights is None:
            return UNKNOWN_BYTES
        return self.state + self.weights


def estimate_disk(
    config: RunConfig,
    pictures: int,
    size: LoraSize | None,
    *,
    from_step: int = 0,
    epoch_states: int = 0,
    step_states: int = 0,
    caption_values: int | None = None,
) -> DiskNeeds:
    """What a training of `config` on so many pictures will write from `from_step` on. `size`: of its base model.

    Of states only as many count as retention keeps at a time, plus the one that is written before an old one goes;
    those that are there already (`epoch_states`, `step_states`) make room for new ones. `caption_values`: what an
    encoded caption holds (None: what is encoded is not counted); sd-scripts keep 32-bit floats of it, FluxGym's own
    trainer what the base is in.
    """
    theirs = config.trainer == "sd-scripts"
    total, each_epoch = config.total_steps(pictures), config.steps_per_epoch(pictures)
    epochs = _times((total - 1) // each_epoch, from_step // each_epoch, config.save_every_n_epochs)
    steps = _times(total - 1, from_step, config.save_every_n_steps)
    other = _samples(config, total, from_step) + max(0, total - from_step) * _BYTES_A_STEP
    if theirs:
        other += _encoded(config, pictures)
    elif caption_values is not None:
        other += _cached(config, pictures, caption_values)
    if size is None:
        return DiskNeeds()
    rank = config.network_dim
    weights = size.in_file * rank * _FILE_BYTES[config.save_precision] + size.layers * _BYTES_A_LAYER
    if config.optimizer_type == "adafactor":  # one row and one column of moments for each matrix
        optimizer = _FLOAT_BYTES * (size.trained + 2 * rank * size.layers)
    else:
        kind = "adamw8bit" if theirs and config.optimizer_type == "adamw" else config.optimizer_type
        optimizer = _OPTIMIZER_BYTES[kind] * size.trained * rank
    # A state's weights have sd-scripts' form as well, zeros included; an EMA is kept beside them by projection.
    held = size.in_file + (size.trained if config.ema_decay else 0)
    state = _FLOAT_BYTES * held * rank + optimizer + size.layers * _BYTES_A_LAYER
    if not config.enable_checkpointing:
        return DiskNeeds(0, weights, (epochs + steps + 1) * weights + other)
    keep_steps = 0
    if config.save_every_n_steps:
        keep_steps = math.ceil(config.save_last_n_steps_state / config.save_every_n_steps)
    more = _more(epochs, config.save_last_n_epochs_state, epoch_states) + _more(steps, keep_steps, step_states)
    # One more: the last state of all, or a new one beside the old one that goes.
    ended = (more + 1) * state + (epochs + steps + 1) * weights
    # Before that: as many new ones as stay, while those that are there already have not gone yet.
    begun = min(steps, keep_steps) * (state + weights) if step_states else 0
    return DiskNeeds(state, weights, max(ended, begun) + other)


def _more(new: int, keep: int, there: int) -> int:
    """How many more states of a kind than `there` lie on the disk in the end, where `keep` of them stay (0 = all)."""
    return max(0, min(new + there, keep) - there) if keep else new


def _times(end: int, start: int, every: int) -> int:
    """How many multiples of `every` there are after `start`, up to and with `end`; 0 = never."""
    return max(0, end // every - start // every) if every else 0


def _samples(config: RunConfig, total: int, from_step: int) -> int:
    every = config.sample_every_n_steps
    prompts = sum(1 for line in config.sample_prompts.splitlines() if line.strip() and not line.strip().startswith("#"))
    if not every or not prompts:
        return 0
    rounds = _times(total - 1, from_step, every) + 1 + (config.sample_at_first and not from_step)
    return int(rounds * prompts * config.resolution**2 * _BYTES_A_PIXEL)


def _encoded(config: RunConfig, pictures: int) -> int:
    """What sd-scripts keep of pictures and captions (where none are dropped) until the end; for schnell it is less."""
    latents = _LATENT_CHANNELS * (config.resolution // 8) ** 2
    return pictures * _FLOAT_BYTES * (latents + (0 if config.caption_dropout_rate else _T5_VALUES))


def _cached(config: RunConfig, pictures: int, caption_values: int) -> int:
    """What FluxGym's own trainer keeps of pictures and captions, in every size and form that they are trained in."""
    areas = sum((size // 8) ** 2 for size in {config.resolution, *config.more_resolutions})
    latents = _LATENT_CHANNELS * areas * _FLOAT_BYTES * (2 if config.flip_aug else 1)
    forms = config.shuffle_caption_forms if config.shuffle_caption else 1
    return pictures * (latents + forms * caption_values * (4 if config.mixed_precision == "no" else 2))


def start_problem(name: str, needs: DiskNeeds, free: int) -> tuple[bool, str]:
    """Whether the training may start on a disk with `free` bytes, and a sentence where it may not or it is tight."""
    least = int(needs.next_save * MARGIN) + RESERVE_BYTES if needs.total is not None else RESERVE_BYTES
    wanted = max(least, (needs.total or 0) + RESERVE_BYTES)
    what = f"{name} needs about {gib(wanted)} on the disk, {gib(free)} are free"
    if wanted > free:
        return False, (
            f"{what}; make room (fluxgym prune), or keep fewer states (save_every_n_epochs and "
            "save_last_n_epochs_state, or the same of steps), then ask again"
        )
    if wanted * MARGIN + needs.next_save > free:
        return True, f"{what}: that is tight; if it gets less, the training is stopped before the disk is full"
    return True, ""


def needed_bytes(next_saves: int) -> int:
    """What must be free so that the next checkpoints (`next_saves` bytes together) and the logs still fit."""
    return int(next_saves * MARGIN) + RESERVE_BYTES


def disk_verdict(free: int, falling: float, next_saves: int) -> str:
    """`ok`, `warn`, or `stop`: stop now, while the last state can still be saved.

    `free` bytes, `falling` by so many bytes a second beside the runs' own checkpoints (0 where it isn't), `next_saves`
    bytes that the next checkpoints of all live runs take together. Warns where one more checkpoint, or ten minutes
    more, lead to a stop.
    """
    needed = needed_bytes(next_saves)
    if free - falling * REACTION_SECONDS < needed:
        return "stop"
    if free - falling * WARN_SECONDS < needed or free - next_saves < needed:
        return "warn"
    return "ok"
