"""Latents and text embeddings, made once before the first step, so that text encoders can be freed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from fluxcore.dataset import Picture, check_picture
from fluxcore.models.family import Family, TextEncoder
from fluxcore.models.loading import PromptEmbedding

Progress = Callable[[int, int], None]


def encode_prompts(text: TextEncoder, prompts: Iterable[str], on_progress: Progress) -> dict[str, PromptEmbedding]:
    """The embedding of each different prompt."""
    different = list(dict.fromkeys(prompts))
    embeddings = {}
    for done, prompt in enumerate(different, 1):
        embeddings[prompt] = text.encode(prompt)
        on_progress(done, len(different))
    return embeddings


def encode_dataset(
    family: Family, pipeline: Any, pictures: list[Picture], resolution: int, workers: int, on_progress: Progress
) -> list[torch.Tensor]:
    """The normalised latents (C, h, w) of each picture, on the CPU. Raises PictureError for one that can't be read."""

    def load(picture: Picture) -> torch.Tensor:
        return load_square(picture.path, resolution)

    latents = []
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for done, pixels in enumerate(pool.map(load, pictures), 1):
            latents.append(family.encode_pictures(pipeline, pixels[None])[0])
            on_progress(done, len(pictures))
    return latents


def load_square(path: Path, size: int) -> torch.Tensor:
    """A picture as float32 (3, size, size) in -1..1: turned as its EXIF says, on white, scaled, cut at the centre."""
    check_picture(path)
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(square, dtype=np.float32).copy())
    return pixels.permute(2, 0, 1) / 127.5 - 1
