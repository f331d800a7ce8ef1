"""Drawing a run's sample prompts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fluxcore.models.family import Drawing, Family, PromptBatch
from fluxcore.models.loading import PromptEmbedding

from .prompts import SamplePrompt


@torch.no_grad()
def draw(
    family: Family,
    pipeline: Any,
    prompt: SamplePrompt,
    embeddings: dict[str, PromptEmbedding],
    resolution: int,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> Image.Image:
    """One picture of `prompt` with the pipeline's transformer as it is (its LoRA included).

    `embeddings` holds the prompt's and, with a scale above 1, the negative prompt's. The noise comes from a generator
    of its own, so drawing never disturbs the training. `on_step` is called after each denoising step; what it
    raises ends the drawing.
    """
    multiple = family.pixel_multiple(pipeline)
    device, dtype = pipeline.transformer.device, pipeline.transformer.dtype
    positive = PromptBatch.stack([embeddings[prompt.text]], device, dtype)
    negative = PromptBatch.stack([embeddings[prompt.negative]], device, dtype) if prompt.scale > 1 else None
    training = pipeline.transformer.training
    pipeline.transformer.eval()
    try:
        what = Drawing(
            positive=positive,
            negative=negative,
            width=_rounded(prompt.width or resolution, multiple),
            height=_rounded(prompt.height or resolution, multiple),
            steps=prompt.steps,
            scale=prompt.scale,
            guidance=prompt.guidance,
            generator=torch.Generator().manual_seed(seed),
            on_step=on_step,
        )
        return family.draw(pipeline, what)
    finally:
        pipeline.transformer.train(training)


def _rounded(pixels: int, multiple: int) -> int:
    return max(multiple, pixels // multiple * multiple)


def save_png(image: Image.Image, path: Path, prompt: str) -> None:
    """Write a PNG aside and rename it; the prompt goes into its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    info = PngInfo()
    info.add_itxt("prompt", prompt)
    image.save(aside, format="PNG", pnginfo=info)
    os.replace(aside, path)
