"""A run's pictures as its trainer sees them: subsets, sizes, repeats, what is held out, and how many steps that is.

No torch: the app and the runner count steps by it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from fluxcore.config import ConfigError, RunConfig

from .buckets import Size, choose_bucket
from .pictures import Picture, PictureError, check_picture, list_pictures
from .subsets import Subset, subsets_of

_ORIENTATION, _TURNED = 0x0112, frozenset({5, 6, 7, 8})


@dataclass(frozen=True)
class Example:
    """A picture in a subset: `size` in pixels at which it is trained, `repeats` times an epoch."""

    picture: Picture
    subset: Subset
    size: Size
    repeats: int

    @property
    def caption(self) -> str:
        """What it is trained with: its caption, or the subset's class tokens (the trigger word) where it has none."""
        return self.picture.prompt(self.subset.class_tokens)


@dataclass(frozen=True)
class Layout:
    """What is trained, what is `held_out` for validation, and how an epoch is cut into steps.

    `items` are indices into `examples`, one a repeat; `groups` has each item's group, pictures that may share a batch
    (same size, same batch size), and `batch_sizes` each group's.
    """

    examples: tuple[Example, ...]
    held_out: tuple[Example, ...]
    items: tuple[int, ...]
    groups: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    steps_per_epoch: int
    total_steps: int

    @property
    def pictures(self) -> list[Picture]:
        """The pictures that are trained, each file once."""
        return list({example.picture.path: example.picture for example in self.examples}.values())

    @property
    def last_epoch(self) -> int:
        """The epoch, from 1, in which the training ends."""
        return math.ceil(self.total_steps / self.steps_per_epoch)


def lay_out(config: RunConfig, dataset: Path) -> Layout:
    """The layout of a run whose own pictures lie in `dataset`. Raises ConfigError or PictureError.

    As in sd-scripts, regularisation pictures are repeated until there are as many of them as of the others, and those
    beyond that are left out.
    """
    subsets = subsets_of(config, dataset)
    by_path: dict[Path, Picture] = {}
    examples = []
    for subset in subsets:
        pictures = list_pictures(subset.image_dir, subset.caption_extension)
        if not pictures:
            raise PictureError(f"there are no pictures in {subset.image_dir}")
        by_path |= {picture.path: picture for picture in pictures if not subset.is_reg}
        examples += [Example(picture, subset, _size(picture, subset), subset.num_repeats) for picture in pictures]
    held = _held_out(list(by_path), config.validation_split, config.seed)
    trained = [one for one in examples if not one.subset.is_reg and one.picture.path not in held]
    regular = [one for one in examples if one.subset.is_reg]
    trained += _as_many(regular, sum(one.repeats for one in trained))

    keys = [(one.size, one.subset.batch_size) for one in trained]
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    items = [index for index, one in enumerate(trained) for _ in range(one.repeats)]
    groups = [numbers[keys[index]] for index in items]
    sizes = tuple(batch for _, batch in sorted(set(keys)))
    batches = sum(math.ceil(count / sizes[group]) for group, count in Counter(groups).items())
    per_epoch = max(1, math.ceil(batches / config.batches_per_step))
    return Layout(
        tuple(trained),
        # Measured once a picture, at its first size.
        tuple({one.picture.path: one for one in reversed(examples) if one.picture.path in held}.values())[::-1],
        tuple(items),
        tuple(groups),
        sizes,
        per_epoch,
        config.max_train_steps or config.max_train_epochs * per_epoch,
    )


def _size(picture: Picture, subset: Subset) -> Size:
    if not subset.enable_bucket:
        return subset.resolution, subset.resolution
    return choose_bucket(
        picture_size(picture.path),
        subset.resolution,
        smallest=subset.min_bucket_reso,
        largest=subset.max_bucket_reso,
        step=subset.bucket_reso_steps,
        no_upscale=subset.bucket_no_upscale,
    )


def picture_size(path: Path) -> Size:
    """Width and height as people see them (turned as its EXIF says), from the file's header. Raises PictureError."""
    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP", "BMP"]) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _TURNED
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        check_picture(path)  # says what is wrong
        raise PictureError(f"{path.name} can't be read; save it anew") from None
    return (height, width) if turned else (width, height)


def _held_out(paths: list[Path], share: float, seed: int) -> set[Path]:
    """`share` of the pictures, at least one and not all, by a hash of their names: new pictures change no old ones."""
    if not share:
        return set()
    if len(paths) < 2:
        raise ConfigError("validation_split needs two pictures at least, one to train on and one to hold out")
    count = min(len(paths) - 1, max(1, round(len(paths) * share)))

    def rank(path: Path) -> bytes:
        return hashlib.blake2b(f"{seed}/{path.name}".encode(errors="surrogateescape")).digest()

    return set(sorted(paths, key=rank)[:count])


def _as_many(examples: list[Example], wanted: int) -> list[Example]:
    """`examples` with their repeats cut, or raised one by one in turn, to `wanted` altogether."""
    repeats = [0] * len(examples)
    left, first = wanted, True
    while left and examples:
        for index, example in enumerate(examples):
            more = min(left, example.repeats if first else 1)
            repeats[index] += more
            left -= more
        first = False
    return [replace(one, repeats=count) for one, count in zip(examples, repeats, strict=True) if count]
