"""What a person should know of each picture before training on it: marks, and how it is cut. Pure: no widgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fluxcore.config import RunConfig
from fluxcore.dataset import Picture
from fluxcore.dataset.buckets import Size, choose_bucket
from fluxcore.dataset.looks import Look

COLOURS = {"unreadable": "red", "twin": "orange", "small": "orange", "no caption": "gray"}
ICONS = {"unreadable": "broken_image", "twin": "content_copy", "small": "photo_size_select_small"}
ICONS["no caption"] = "speaker_notes_off"


@dataclass(frozen=True)
class Mark:
    """One thing about a picture: `kind` is a key of COLOURS, `why` a sentence."""

    kind: str
    why: str

    @property
    def badge(self) -> str:
        """In Streamlit's markdown."""
        return f":{COLOURS[self.kind]}-badge[:material/{ICONS[self.kind]}: {self.kind}]"


def marks_of(
    pictures: list[Picture], looks: Mapping[Path, Look], twins: Mapping[Path, Path], config: RunConfig | None
) -> dict[Path, list[Mark]]:
    """The marks of each picture; a picture that is not in `looks` yet has only those of its caption."""
    found: dict[Path, list[Mark]] = {}
    for picture in pictures:
        marks = found.setdefault(picture.path, [])
        look = looks.get(picture.path)
        if look and look.problem:
            marks.append(Mark("unreadable", f"{look.problem}. Take it out: a run with it does not start."))
        elif look and config and (small := too_small(look.size, config)):
            marks.append(Mark("small", small))
        if twin := twins.get(picture.path):
            marks.append(Mark("twin", f"It looks like {twin.name}: twins are learned twice as much. Take one out."))
        if picture.caption is None:
            marks.append(Mark("no caption", "It is trained with the trigger word alone."))
    return found


def too_small(size: Size, config: RunConfig) -> str:
    """Why a picture of that size is too small for the resolution, or ""."""
    width, height = size
    wanted = config.resolution
    if config.enable_bucket:
        if width * height < 0.9 * wanted * wanted and not config.bucket_no_upscale:
            return f"{width} × {height} pixels are enlarged to {wanted}²: that blurs the LoRA."
        return ""
    if min(size) < wanted:
        return f"{width} × {height} pixels are enlarged to {wanted} × {wanted}: that blurs the LoRA."
    return ""


def trained_size(size: Size, config: RunConfig) -> Size:
    """Width and height at which a picture of that size is trained, in a run without a `dataset_config`."""
    if not config.enable_bucket:
        return config.resolution, config.resolution
    return choose_bucket(
        size,
        config.resolution,
        smallest=config.min_bucket_reso,
        largest=config.max_bucket_reso,
        step=config.bucket_reso_steps,
        no_upscale=config.bucket_no_upscale,
    )
