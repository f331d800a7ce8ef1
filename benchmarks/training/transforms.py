"""Enough of torchvision for diffusers' script, for machines whose torch has no torchvision: written into a folder that
comes first on the peer's path. Its pictures are made into tensors once, before the steps that are timed."""

from __future__ import annotations

from pathlib import Path

INIT = "from . import transforms\n"
TRANSFORMS = """
import random
import numpy, torch
from enum import Enum
from PIL import Image
from . import functional

class InterpolationMode(Enum):
    BILINEAR = Image.Resampling.BILINEAR

class Resize:
    def __init__(self, size, interpolation=InterpolationMode.BILINEAR): self.size, self.how = size, interpolation.value
    def __call__(self, image):
        scale = self.size / min(image.size)
        return image.resize([max(1, round(side * scale)) for side in image.size], self.how)

class CenterCrop:
    def __init__(self, size): self.size = size
    def __call__(self, image):
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))

class RandomCrop(CenterCrop):
    @staticmethod
    def get_params(image, size):
        return (random.randint(0, image.height - size[0]), random.randint(0, image.width - size[1]), *size)

class RandomHorizontalFlip:
    def __init__(self, p): self.p = p
    def __call__(self, image):
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < self.p else image

class ToTensor:
    def __call__(self, image):
        return torch.from_numpy(numpy.asarray(image, dtype="float32") / 255).permute(2, 0, 1)

class Normalize:
    def __init__(self, mean, std): self.mean, self.std = mean[0], std[0]
    def __call__(self, tensor): return (tensor - self.mean) / self.std

class Compose:
    def __init__(self, steps): self.steps = steps
    def __call__(self, image):
        for step in self.steps: image = step(image)
        return image
"""
FUNCTIONAL = "def crop(image, top, left, height, width): return image.crop((left, top, left + width, top + height))\n"


def write_stand_in(folder: Path) -> None:
    """Write a package `torchvision` into `folder`."""
    package = folder / "torchvision"
    (package / "transforms").mkdir(parents=True)
    (package / "__init__.py").write_text(INIT)
    (package / "transforms" / "__init__.py").write_text(TRANSFORMS)
    (package / "transforms" / "functional.py").write_text(FUNCTIONAL)
