"""Runs diffusers' script as it is, with a stand-in for torchvision's transforms on machines whose torch has none.

    python -m benchmarks.training.peer SCRIPT [its options]

Its pictures are made into tensors once, before the steps that are timed.
"""

from __future__ import annotations

import atexit
import importlib.util
import random
import runpy
import sys
import types
from enum import Enum
from typing import Any

import numpy
import torch
from PIL import Image

from benchmarks.training import GPU_PEAK


class InterpolationMode(Enum):
    BILINEAR = Image.Resampling.BILINEAR


class Resize:
    """The shorter side to `size`."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size, self.how = size, interpolation.value

    def __call__(self, image: Image.Image) -> Image.Image:
        scale = self.size / min(image.size)
        return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), self.how)


class CenterCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        return crop(image, (image.height - self.size) // 2, (image.width - self.size) // 2, self.size, self.size)


class RandomCrop(CenterCrop):
    @staticmethod
    def get_params(image: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        return random.randint(0, image.height - size[0]), random.randint(0, image.width - size[1]), *size


class RandomHorizontalFlip:
    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < self.p else image


class ToTensor:
    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(numpy.asarray(image, dtype="float32") / 255).permute(2, 0, 1)


class Normalize:
    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = mean[0], std[0]

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor - self.mean) / self.std


class Compose:
    def __init__(self, steps: list[Any]) -> None:
        self.steps = steps

    def __call__(self, image: Any) -> Any:
        for step in self.steps:
            image = step(image)
        return image


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    return image.crop((left, top, left + width, top + height))


def stand_in() -> None:
    """Put the classes above where the script looks for torchvision's."""
    from transformers.utils import is_torchvision_available

    is_torchvision_available()  # asked once and remembered: transformers needs more of it than is here
    package, transforms, functional = (
        types.ModuleType(f"torchvision{name}") for name in ("", ".transforms", ".transforms.functional")
    )
    for value in (
        InterpolationMode,
        Resize,
        CenterCrop,
        RandomCrop,
        RandomHorizontalFlip,
        ToTensor,
        Normalize,
        Compose,
    ):
        setattr(transforms, value.__name__, value)
    vars(functional)["crop"] = crop
    vars(transforms)["functional"] = functional
    vars(package)["transforms"] = transforms
    for module in (package, transforms, functional):
        module.__spec__ = importlib.util.spec_from_loader(module.__name__, None)
        sys.modules[module.__name__] = module


def say_peak() -> None:
    """What the allocator had at most, where there is a GPU."""
    if torch.cuda.is_initialized():
        print(f"\n{GPU_PEAK} {torch.cuda.max_memory_allocated()}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if importlib.util.find_spec("torchvision") is None:
        stand_in()
    atexit.register(say_peak)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
