"""Base models in single files, as ComfyUI and Forge keep them: which are in a folder. Looks at names and headers alone.

The four parts have the names of sd-scripts' options, in configs and in the registry alike. No torch.
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
"""The transformer, the autoencoder and the two text encoders."""

SUFFIXES = (".safetensors", ".sft")
DEPTH = 4
MOST_FILES = 20_000
# BFL's names; a LoRA, a control net or FLUX.2 of the same folder has no such tensor.
_TRANSFORMER_KEYS = {"double_blocks.0.img_mod.lin.weight", "model.diffusion_model.double_blocks.0.img_mod.lin.weight"}
_NAMES = {
    "ae": re.compile(r"(flux[\w.-]*?[_.-])?(ae|vae)", re.IGNORECASE),
    "clip_l": re.compile(r"clip_l(\W.*)?", re.IGNORECASE),
    "t5xxl": re.compile(r"(google_)?t5(-v1_1-|v1_1_|_)?xxl([_.-].*)?", re.IGNORECASE),
}


@dataclass(frozen=True)
class SingleFiles:
    """A base model on this machine in single files: the path of each part, and where its tokenizers are to be found.

    `tokenizers`: a folder that a person named; "" = where they usually are (see tokenizers.py).
    """

    files: Mapping[str, Path]
    tokenizers: str = ""

    def __str__(self) -> str:
        return str(self.files[PARTS[0]])


@dataclass(frozen=True)
class FileFolder:
    """What a folder holds: `files`, part → absolute path; `unclear`, part → why there is none or more than one."""

    files: Mapping[str, str]
    unclear: Mapping[str, str]


def is_schnell(transformer: Path) -> bool:
    """Whether a transformer's file is of FLUX.1-schnell's kind: it has no guidance embedding."""
    keys = safetensors_keys(transformer)
    return bool(keys) and not any("guidance_in." in key for key in keys)


def scan_folder(folder: Path) -> FileFolder:
    """The parts of FLUX.1 in `folder` and the folders in it, as in ComfyUI's or Forge's `models`.

    Of several T5 the one that is not in 8 bit is taken. A part of which there are several is unclear.
    """
    found: dict[str, list[Path]] = {part: [] for part in PARTS}
    for path in _files_below(folder):
        part = next((part for part, name in _NAMES.items() if name.fullmatch(path.stem)), PARTS[0])
        if part != PARTS[0] or _holds_transformer(path, path.stat().st_mtime_ns):
            found[part].append(path)
    whole = [path for path in found["t5xxl"] if "fp8" not in path.stem.lower()]
    found["t5xxl"] = whole or found["t5xxl"]
    files, unclear = {}, {}
    for part, paths in found.items():
        if len(paths) == 1:
            files[part] = str(paths[0])
        elif paths:
            names = ", ".join(str(path.relative_to(folder)) for path in paths[:6])
            unclear[part] = f"{folder} has several of them ({names})"
        else:
            unclear[part] = f"{folder} has none"
    return FileFolder(files, unclear)


@lru_cache(maxsize=MOST_FILES)
def _holds_transformer(path: Path, mtime_ns: int) -> bool:
    """Remembered: the app asks at every edit of a form, and a header may be long."""
    return not _TRANSFORMER_KEYS.isdisjoint(safetensors_keys(path))


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
