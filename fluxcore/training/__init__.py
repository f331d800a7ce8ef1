"""The trainer. Nothing here but `check` is imported by app or runner; `train.py` is read top to bottom."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fluxcore.config import RunConfig

# Before diffusers looks for it: models/loading.py says why, and `optimizers.py` alone would import diffusers first.
sys.modules.setdefault("torchao", None)  # type: ignore[arg-type]


def check(config: RunConfig) -> None:
    """Raise UserError, saying what to do, where the config's base model can't be what it names. Light: no torch."""
    from fluxcore.models.files import ALL_PARTS
    from fluxcore.models.registry import base_files, find_model

    base_files(find_model(config.base_model), {part: getattr(config, part) for part in ALL_PARTS})
