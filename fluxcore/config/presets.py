"""Presets: what the GPU's memory and the base model set, before a person's own settings."""

from __future__ import annotations

from typing import Any

from fluxcore.models.registry import ModelNotFound, find_model

from .schema import ConfigError, RunConfig, parse_config

# FluxGym's three with what its `train_script` of 2025 sets for them, and those below and above. Each holds FLUX.1 at
# 512 pixels, batch 1, with room for the libraries' workspaces (docs/memory.md has the plan of each).
_ADAFACTOR = {"optimizer_type": "adafactor", "lr_scheduler": "constant_with_warmup", "max_grad_norm": 0.0}
VRAM_PRESETS: dict[str, dict[str, Any]] = {
    "8G": {**_ADAFACTOR, "fp8_base": True, "blocks_to_swap": 28, "encode_on_cpu": True},
    "12G": {**_ADAFACTOR, "fp8_base": True, "blocks_to_swap": 18},
    "16G": {**_ADAFACTOR, "fp8_base": True},
    "20G": {"fp8_base": True},
    "24G": {"fp8_base": True},
    "48G": {"gradient_checkpointing_interval": 2},
    "80G": {"gradient_checkpointing": False},
}


def resolve_config(*layers: dict[str, Any]) -> RunConfig:
    """One config from `layers`, the later the stronger, over the defaults, the memory preset and the model's own.

    Raises ConfigError with a sentence for every wrong field.
    """
    given: dict[str, Any] = {}
    for layer in layers:
        given |= layer
    fields = RunConfig.model_fields
    base_model = given.get("base_model", fields["base_model"].default)
    vram = str(given.get("vram", fields["vram"].default))
    if vram not in VRAM_PRESETS:
        raise ConfigError(f"vram must be one of {', '.join(VRAM_PRESETS)}", {"vram": f"unknown preset {vram!r}"})
    try:
        of_model = find_model(str(base_model)).settings(vram)
    except ModelNotFound as error:
        raise ConfigError(str(error), {"base_model": str(error)}) from None
    return parse_config({**VRAM_PRESETS[vram], **of_model, **given})


def memory_preset(vram: str, base_model: str) -> dict[str, Any]:
    """What the memory preset `vram` sets for `base_model`; an unknown one of either sets nothing of its own."""
    try:
        of_model = find_model(base_model).presets.get(vram, {})
    except ModelNotFound:
        of_model = {}
    return {**VRAM_PRESETS.get(vram, {}), **of_model}
