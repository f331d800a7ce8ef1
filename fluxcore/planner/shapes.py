"""The config.json of each part of a base model, whether or not its weights are here.

Those of gated or absent models ship in folders beside this file, as far as they say how large the parts are:

- `flux1`: FLUX.1's own, which are public though the weights are gated.
- `klein_4b`, `klein_9b`: the transformers after Black Forest Labs' parameters as kohya's musubi-tuner has them
  (`flux_2/flux2_models.py`: width 3072 and 4096, 5 + 20 and 8 + 24 blocks, three Qwen3 layers side by side as text);
  the text encoders are Qwen3-4B's and Qwen3-8B's (ComfyUI's `text_encoders/llama.py` has the same numbers); the
  autoencoder is that of Black Forest Labs' `flux2/autoencoder.py`, which are diffusers' `AutoencoderKLFlux2` defaults.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fluxcore.errors import UserError
from fluxcore.models.klein import KLEIN_FAMILY, is_9b
from fluxcore.models.registry import BaseModel

FLUX_1, KLEIN_4B, KLEIN_9B = (Path(__file__).with_name(name) for name in ("flux1", "klein_4b", "klein_9b"))
PARTS = {
    "flux": ("transformer", "vae", "text_encoder", "text_encoder_2"),
    KLEIN_FAMILY: ("transformer", "vae", "text_encoder"),
}


class PlanError(UserError):
    """A plan that can't be made."""


def model_files(model: BaseModel) -> dict[str, Any]:
    """The config.json of each part of `model`: its own where it is a folder here, else those of its family."""
    if model.family not in PARTS:
        raise PlanError(f"what {model.name} needs can't be told: its family {model.family} is not known")
    parts = PARTS[model.family]
    if model.path is not None and (model.path / "transformer" / "config.json").is_file():
        try:
            return {part: json.loads((model.path / part / "config.json").read_text()) for part in parts}
        except (OSError, ValueError) as error:
            raise PlanError(f"the base model {model.name} has no readable config.json in each part: {error}") from None
    folder = FLUX_1 if model.family == "flux" else KLEIN_9B if is_9b(model) else KLEIN_4B
    files = {part: json.loads((folder / f"{part}.json").read_text()) for part in parts}
    if model.family == "flux" and "schnell" in (model.repo or model.name).lower():
        files["transformer"]["guidance_embeds"] = False
    return files
