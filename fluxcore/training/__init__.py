"""The trainer. Nothing here but `check` is imported by app or runner; `train.py` is read top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxcore.models.hidden import hide_seldom_needed

if TYPE_CHECKING:
    from fluxcore.config import RunConfig

hide_seldom_needed()  # before any of the trainer's modules imports diffusers


def check(config: RunConfig) -> None:
    """Raise UserError, saying what to do, where the config's base model can't be what it names. Light: no torch."""
    from fluxcore.models.files import ALL_PARTS
    from fluxcore.models.registry import base_files, find_model

    base_files(find_model(config.base_model), {part: getattr(config, part) for part in ALL_PARTS})
