"""Base models in single files, as ComfyUI and Forge keep them: which are in a folder. Looks at names and headers alone.

FLUX.1's four parts have the names of sd-scripts' options, in configs and in the registry alike. No torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fluxcore.runs.checkpoints import safetensors_keys

PARTS = ("pretrained_model_name_or_path", "ae", "clip_l", "t5xxl")
"""FLUX.1's transformer, its autoencoder and its two text encoders."""
KLEIN_PARTS = ("pretrained_model_name_or_path", "ae", "qwen3")
"""FLUX.2 klein's transformer, its autoencoder and its text encoder."""
ALL_PARTS = tuple(dict.fromkeys(PARTS + KLEIN_PARTS))

SUFFIXES = (".safetensors", ".sft")
DEPTH = 4
MOST_FILES = 20_000
# BFL's names; a LoRA or a control net of the same folder has no such tensor. Unlike klein FLUX.2-dev has a guidance
# embedding.
_TRANSFORMER, _KLEIN = "double_blocks.0.img_mod.lin.weight", "double_stream_modulation_img.lin.weight"
_GUIDANCE, _PREFIX = "guidance_in.in_layer.weight", "model.diffusion_model."
_KLEIN_AE = "bn.running_mean"
_NAMES = {
    "ae": re.compile(r"(flux[\w.-]*?[_.-])?(ae|vae)", re.IGNORECASE),
    "clip_l": re.compile(r"clip_l(\W.*)?", re.IGNORECASE),
    "t5xxl": re.compile(r"(google_)?t5(-v1_1-|v1_1_|_)?xxl([_.-].*)?", re.IGNORECASE),
    "qwen3": re.compile(r"qwen[_-]?3[_-][48]b([_.-].*)?", re.IGNORECASE),
}


@dataclass(frozen=True)
class SingleFiles:
    """A base model on this machine in single files: the path of each part, and where its tokenizers are to be found.

    `tokenizers`: a folder that a person named; "" = where they usually are (see tokenizers.py).
    """

    files: Mapping[str, Path]
    tokenizers: str = ""

    @property
    def klein(self) -> bool:
        """Whether they are FLUX.2 klein's."""
        return KLEIN_PARTS[-1] in self.files

    def __str__(self) -> str:
        return str(self.files[PARTS[0]])


@dataclass(frozen=True)
class FileFolder:
    """What a folder holds: `files`, part → absolute path; `unclear`, part → why there is none or more than one.

    `klein`: they are FLUX.2 klein's parts.
    """

    files: Mapping[str, str]
    unclear: Mapping[str, str]
    klein: bool = False


def is_schnell(transformer: Path) -> bool:
    """Whether a transformer's file is of FLUX.1-schnell's kind: it has no guidance embedding."""
    keys = safetensors_keys(transformer)
    return bool(keys) and not any("guidance_in." in key for key in keys)


def scan_folder(folder: Path) -> FileFolder:
    """The parts of a model in `folder` and the folders in it, as in ComfyUI's or Forge's `models`.

    FLUX.2 klein's where there is a transformer of its kind and none of FLUX.1. Of several T5 the one that is not in
    8 bit is taken, of several Qwen3 the one that the transformer reads. A part of which there are several is unclear.
    """
    found: dict[str, list[Path]] = {part: [] for part in (*ALL_PARTS, "klein", "klein ae")}
    for path in _files_below(folder):
        part = next((part for part, name in _NAMES.items() if name.fullmatch(path.stem)), "")
        if part != "ae" and part:
            found[part].append(path)
        elif kind := _kind(path, path.stat().st_mtime_ns, part == "ae"):
            found[kind].append(path)
    whole = [path for path in found["t5xxl"] if "fp8" not in path.stem.lower()]
    found["t5xxl"] = whole or found["t5xxl"]
    klein = bool(found["klein"]) and not found[PARTS[0]]
    if klein:
        found |= {PARTS[0]: found["klein"], "ae": found["klein ae"]}
        if len(found["klein"]) == 1 and (size := _size_in_name(found["klein"][0])):
            found["qwen3"] = [path for path in found["qwen3"] if _size_in_name(path) == _TEXT_SIZE[size]]
    files, unclear = {}, {}
    for part in KLEIN_PARTS if klein else PARTS:
        paths = found[part]
        if len(paths) == 1:
            files[part] = str(paths[0])
        elif paths:
            names = ", ".join(str(path.relative_to(folder)) for path in paths[:6])
            unclear[part] = f"{folder} has several of them ({names})"
        else:
            unclear[part] = f"{folder} has none"
    return FileFolder(files, unclear, klein)


_TEXT_SIZE = {"4b": "4b", "9b": "8b"}
"""The size of klein's text encoder, by the transformer's."""


def _size_in_name(path: Path) -> str:
    found = re.search(r"(?<![0-9])[489]b(?![a-z0-9])", path.stem.lower())
    return found[0] if found else ""


@lru_cache(maxsize=MOST_FILES)
def _kind(path: Path, mtime_ns: int, autoencoder: bool) -> str:
    """Which part a file is by the names of its tensors, "" for none: of a file named as an autoencoder whose it is.

    Remembered: the app asks at every edit of a form, and a header may be long.
    """
    keys = safetensors_keys(path)
    if autoencoder:
        return "klein ae" if any(key.endswith(_KLEIN_AE) for key in keys) else "ae"
    names = {key.removeprefix(_PREFIX) for key in keys}
    if _TRANSFORMER in names:
        return PARTS[0]
    return "klein" if _KLEIN in names and _GUIDANCE not in names else ""


def _files_below(folder: Path) -> list[Path]:
    """Weights files at most DEPTH folders down, links followed, at most MOST_FILES of them."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        if len(Path(place).relative_to(folder).parts) >= DEPTH:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(place, name) for name in sorted(names) if name.lower().endswith(SUFFIXES))
        found += [path for path in paths if path.is_file()]  # no link that leads nowhere
        if len(found) > MOST_FILES:
            break
    return found[:MOST_FILES]
