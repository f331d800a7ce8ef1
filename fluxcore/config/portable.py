"""A config as a file of its own: the seed's `ui_state.json` (contract, section 4)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from fluxcore.models.files import ALL_PARTS
from fluxcore.models.registry import list_models

from .schema import RunConfig

PATHS = ("network_weights", "dataset_config", *ALL_PARTS, "tokenizer_cache_dir")


def to_export(config: RunConfig, status: str, timestamp: float | None = None) -> dict[str, Any]:
    """The flat JSON object of `ui_state.json`: every setting, then `timestamp` (epoch seconds) and `status`."""
    return {**config.model_dump(), "timestamp": time.time() if timestamp is None else timestamp, "status": status}


def from_export(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings in a file such as FluxGym's cloud fork writes, and the names of the keys it has that are none."""
    known = {key: value for key, value in values.items() if key in RunConfig.model_fields}
    ignored = {"timestamp", "status"}
    return known, sorted(key for key in values if key not in known and key not in ignored)


def absolute_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with their paths made absolute from the present directory: the trainer works elsewhere.

    A `base_model` is a path where it looks like one, or where a folder of that name lies here; a name of the
    registry is never one.
    """
    resolved = dict(settings)
    model = resolved.get("base_model")
    for name in PATHS:
        path = resolved.get(name)
        if isinstance(path, str) and path and not (name == "dataset_config" and is_toml(path)):
            resolved[name] = _absolute(path)
    if isinstance(model, str) and model not in [known.name for known in list_models()]:
        folder = _absolute(model)
        if model.startswith((".", "~")) or os.path.isdir(folder):
            resolved["base_model"] = folder
    return resolved


def is_toml(dataset_config: str) -> bool:
    """Whether a `dataset_config` is the text itself, not the path of a file."""
    return "\n" in dataset_config or "[" in dataset_config


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
