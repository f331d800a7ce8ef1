"""Which pictures a run is trained on and how: one folder, or the subsets of an sd-scripts `dataset_config`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fluxcore.config import ConfigError, RunConfig
from fluxcore.config.portable import is_toml
from fluxcore.config.schema import sentence

FROM_CONFIG = (
    "num_repeats",
    "resolution",
    "enable_bucket",
    "min_bucket_reso",
    "max_bucket_reso",
    "bucket_reso_steps",
    "bucket_no_upscale",
    "flip_aug",
    "shuffle_caption",
    "keep_tokens",
    "caption_dropout_rate",
)
"""Settings of a run that a dataset or a subset of `dataset_config` may have for itself."""


class Subset(BaseModel):
    """A folder of pictures and how they are trained. Names, units and limits as in sd-scripts and in RunConfig."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image_dir: Path
    caption_extension: str = Field(".txt", pattern=r"^\.[A-Za-z0-9]{1,10}$")
    class_tokens: str = Field("", max_length=2000)
    is_reg: bool = False
    batch_size: int = Field(1, ge=1, le=256)
    num_repeats: int = Field(1, ge=1, le=1000)
    resolution: int = Field(512, ge=16, le=2048, multiple_of=16)
    enable_bucket: bool = False
    min_bucket_reso: int = Field(256, ge=16, le=4096, multiple_of=16)
    max_bucket_reso: int = Field(1024, ge=16, le=4096, multiple_of=16)
    bucket_reso_steps: int = Field(64, ge=16, le=256, multiple_of=16)
    bucket_no_upscale: bool = True
    flip_aug: bool = False
    shuffle_caption: bool = False
    keep_tokens: int = Field(1, ge=0, le=255)
    caption_dropout_rate: float = Field(0.0, ge=0, le=1)


def subsets_of(config: RunConfig, dataset: Path) -> list[Subset]:
    """The subsets of a run whose own pictures lie in `dataset`. Raises ConfigError where `dataset_config` is wrong.

    Without a `dataset_config` it is that folder, once for the resolution and once for each of `extra_resolutions`.
    """
    ours = {name: getattr(config, name) for name in FROM_CONFIG} | {"batch_size": config.train_batch_size}
    ours["class_tokens"] = config.concept_sentence
    if not config.dataset_config:
        sizes = [config.resolution, *config.more_resolutions]
        return [Subset(**{**ours, "resolution": size, "image_dir": dataset}) for size in dict.fromkeys(sizes)]
    text, base = config.dataset_config, dataset
    if not is_toml(text):
        path = Path(text).expanduser()
        base = path.parent
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise _wrong(f"{path} can't be read ({why})") from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _wrong(f"is no TOML: {error}") from None
    return _parse(tree, ours, base)


def _parse(tree: Mapping[str, Any], ours: dict[str, Any], base: Path) -> list[Subset]:
    """[general] < [[datasets]] < [[datasets.subsets]], each over the run's own settings."""
    if unknown := set(tree) - {"general", "datasets"}:
        raise _wrong(f"has {', '.join(sorted(unknown))}; it may have [general] and [[datasets]]")
    general, datasets = tree.get("general", {}), tree.get("datasets", [])
    if not isinstance(general, dict) or not isinstance(datasets, list):
        raise _wrong("needs [general] as one table and [[datasets]] as a list of them")
    found = []
    for dataset in datasets:
        subsets = dataset.get("subsets", []) if isinstance(dataset, dict) else []
        if not isinstance(subsets, list) or not all(isinstance(subset, dict) for subset in subsets):
            raise _wrong("needs its subsets as [[datasets.subsets]]")
        for subset in subsets:
            shared = {name: value for name, value in dataset.items() if name != "subsets"}
            found.append(_subset({**ours, **general, **shared, **subset}, base))
    if not found:
        raise _wrong("has no [[datasets]] with [[datasets.subsets]] below it")
    if all(subset.is_reg for subset in found):
        raise _wrong("has regularisation pictures only: one subset needs is_reg = false")
    return found


def _subset(values: dict[str, Any], base: Path) -> Subset:
    given = dict(values)
    size = given.get("resolution")
    if isinstance(size, list):  # sd-scripts takes [width, height]
        if len(size) != 2 or size[0] != size[1]:
            raise _wrong(f"has resolution {size}: one number, or twice the same; other shapes are enable_bucket's work")
        given["resolution"] = size[0]
    if not isinstance(given.get("image_dir"), str):
        raise _wrong("has a subset without image_dir, the folder of its pictures")
    given["image_dir"] = base / Path(given["image_dir"]).expanduser()
    try:
        return Subset(**given)
    except ValidationError as error:
        problem = error.errors()[0]
        raise _wrong(f"has a wrong setting: {sentence(str(problem['loc'][0]), problem, Subset.model_fields)}") from None


def _wrong(what: str) -> ConfigError:
    return ConfigError(f"dataset_config {what}", {"dataset_config": f"dataset_config {what}"})
