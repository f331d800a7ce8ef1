"""What differs from one family of FLUX to the next: the seam that training and sampling go through.

A family is a module of functions and one `Family` that names them, such as FLUX_1 in `flux.py`. `base` is where a model
lies (a diffusers folder or single files), `pipeline` what the family's own `load_image_side` made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

import torch
from PIL import Image

from .loading import PromptEmbedding
from .locating import Base
from .registry import BaseModel, ModelNotFound

Grid = tuple[int, int]
"""Rows and columns of a picture's tokens."""


@dataclass
class PromptBatch:
    """Stacked embeddings: `pooled` (B, P), `sequence` (B, T, D)."""

    pooled: torch.Tensor
    sequence: torch.Tensor

    @classmethod
    def stack(cls, embeddings: list[PromptEmbedding], device: torch.device, dtype: torch.dtype) -> PromptBatch:
        """One batch of them, on `device` in `dtype`."""
        return cls(
            torch.stack([one.pooled for one in embeddings]).to(device, dtype),
            torch.stack([one.sequence for one in embeddings]).to(device, dtype),
        )


class TextEncoder(Protocol):
    """The tokenizers and text encoders of a model."""

    def encode(self, prompt: str) -> PromptEmbedding:
        """One prompt's embedding, on the CPU."""


@dataclass(frozen=True)
class Drawing:
    """What to draw: embeddings of batch 1 (`negative` where `scale` is above 1), sizes in pixels.

    `scale`: of classifier-free guidance, 1 = off; `guidance`: the value given to a guidance-distilled model; `on_step`
    is called after each denoising step, and what it raises ends the drawing.
    """

    positive: PromptBatch
    negative: PromptBatch | None
    width: int
    height: int
    steps: int
    scale: float
    guidance: float
    generator: torch.Generator
    on_step: Callable[[], None]


@dataclass(frozen=True)
class Family:
    """One family. All that is asked of it beyond what its weights say."""

    name: str

    load_text_side: Callable[[Base, int, torch.dtype, torch.device], TextEncoder]
    """(base, tokens, dtype, device) → the text side alone; freed once every prompt is encoded."""

    load_image_side: Callable[[Base, torch.dtype, torch.device], Any]
    """(base, dtype, device) → a pipeline with `transformer`, `vae` and `scheduler`, without text encoders."""

    encode_pictures: Callable[[Any, torch.Tensor], torch.Tensor]
    """(pipeline, pixels (B, 3, H, W) in -1..1) → normalised latents (B, C, h, w) in 32 bit on the CPU."""

    pack: Callable[[torch.Tensor], torch.Tensor]
    """Latents (B, C, h, w) → the transformer's tokens (B, N, D)."""

    grid: Callable[[torch.Tensor], Grid]
    """Latents (…, C, h, w) → rows and columns of their tokens; their product is N."""

    predict: Callable[[Any, torch.Tensor, torch.Tensor, PromptBatch, float, Grid], torch.Tensor]
    """(pipeline, noisy tokens (B, N, D), sigma (B,) in 0..1, prompts, guidance, grid) → the velocity, noise - picture.
    A model without a guidance embedding is given none, whatever `guidance` is."""

    draw: Callable[[Any, Drawing], Image.Image]
    """(pipeline, what) → one picture, with the transformer as it is."""

    pixel_multiple: Callable[[Any], int]
    """Width and height are multiples of this many pixels."""

    training_mu: Callable[[int], float]
    """The shift of noise levels in training with `flux_shift`, as an exponent, by the picture's token count."""

    sampling_mu: Callable[[Any, int, int], float | None]
    """(pipeline, token count, denoising steps) → the shift of its own sampler, as an exponent; None = it makes none."""

    lora_targets: str
    """A regular expression of the transformer's linear layers that a LoRA is put on."""

    key_names: Literal["flux1", "flux2"]
    """Whose names a LoRA's file has: see training/lora_keys.py."""


_MODULES = {"flux": ("flux", "FLUX_1"), "flux2-klein": ("flux2", "FLUX_2_KLEIN")}


def family_of(model: BaseModel) -> Family:
    """The family of a base model. Raises ModelNotFound."""
    if model.family not in _MODULES:
        raise ModelNotFound(f"{model.name} is of the family {model.family!r}, which FluxGym can't train")
    module, name = _MODULES[model.family]
    found: Family = getattr(import_module(f".{module}", __package__), name)
    return found
