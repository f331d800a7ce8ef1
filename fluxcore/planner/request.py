"""What measure.py is asked about a config: the shapes of its model, and of the batch that needs most. No torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxcore.models.held import held
from fluxcore.models.registry import find_model
from fluxcore.training.prompts import parse_prompts

from .shapes import PlanError, model_files

if TYPE_CHECKING:
    from fluxcore.config import RunConfig

PIXELS_A_TOKEN = 16
"""Sides of the square of a picture that is one token of FLUX's."""
NETWORK = (
    "network_algo",
    "network_dropout",
    "use_dora",
    "lokr_factor",
    "train_blocks",
    "train_double_block_indices",
    "train_single_block_indices",
    "train_layers",
)
"""Settings besides the rank that say what is trained."""


def request_of(config: RunConfig) -> dict[str, Any]:
    """What measure.py is asked about `config`. Raises PlanError."""
    model = find_model(config.base_model)
    height, width = largest_sample(config)
    batches = batches_of(config)
    size, batch = max(batches, key=lambda one: (one[1] * (model.tokens + (one[0] // PIXELS_A_TOKEN) ** 2), one))
    picture = max(size for size, _ in batches)
    interval = config.gradient_checkpointing_interval if config.gradient_checkpointing else 1
    return {
        **model_files(model),
        "precision": config.mixed_precision,
        "held": held(config),
        "rank": config.network_dim,
        "network": {name: getattr(config, name) for name in NETWORK},
        "checkpointing": config.gradient_checkpointing,
        **({"checkpointing_interval": interval} if interval > 1 else {}),
        "batch": batch,
        "tokens": model.tokens,
        "size": [size, size],
        "picture_size": [picture, picture],
        "sample_size": [height, width],
    }


def batches_of(config: RunConfig) -> list[tuple[int, int]]:
    """The kinds of batches: side in pixels of a square as large as their pictures, and how many pictures at most.

    Raises PlanError where `dataset_config` is wrong.
    """
    from fluxcore.config import ConfigError
    from fluxcore.dataset.subsets import subsets_of

    try:
        subsets = subsets_of(config, Path())  # their folders are not looked into
    except ConfigError as error:
        raise PlanError(str(error)) from None
    return sorted({(subset.resolution, subset.batch_size) for subset in subsets})


def largest_sample(config: RunConfig) -> tuple[int, int]:
    """Height and width in pixels of the largest sample; the training's, where none is drawn."""
    try:
        prompts = parse_prompts(config.sample_prompts) if config.sample_every_n_steps else []
    except ValueError:
        prompts = []
    sizes = [(prompt.height or config.resolution, prompt.width or config.resolution) for prompt in prompts]
    return max(sizes, key=math.prod, default=(config.resolution, config.resolution))
