"""Which FLUX.2 klein a model is, told without torch and without its weights."""

from __future__ import annotations

from pathlib import Path

from .registry import BaseModel

KLEIN_FAMILY = "flux2-klein"


def is_9b(model: BaseModel) -> bool:
    """Whether `model` is the klein of 9 billion values, by its names; the other one has 4."""
    names = (model.repo or "", model.name, *(Path(file).name for file in model.files.values()))
    return any("9b" in name.lower() for name in names)
