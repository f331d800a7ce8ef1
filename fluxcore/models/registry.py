"""The list of base models. Light on purpose: app and runner read it too; loading lives in `loading.py`."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from fluxcore.errors import UserError
from fluxcore.runs.files import default_outputs

from .files import ALL_PARTS, KLEIN_PARTS, PARTS, FileFolder, is_schnell, scan_folder

REGISTRY_FILE = Path(__file__).with_name("registry.toml")
OWN_FILE = "models.toml"
OWN_VARIABLE = "FLUXGYM_MODELS"
FAMILIES = ("flux", "flux2-klein")
DEFAULT_TOKENS = 512
DEFAULT_SAMPLE_STEPS = 20
SCHNELL: dict[str, Any] = {"tokens": 256, "sample_steps": 4, "defaults": {"timestep_sampling": "sigmoid"}}
"""What a model without a guidance embedding needs, where nobody says otherwise; flux-schnell's entry says the same."""
KLEIN: dict[str, Any] = {
    "family": "flux2-klein",
    "tokens": 512,
    "sample_steps": 50,
    "defaults": {"timestep_sampling": "flux_shift"},
}
"""Likewise of a FLUX.2 klein that isn't distilled."""
KLEIN_DISTILLED_STEPS, KLEIN_4B_WIDTH = 4, 3072
KLEIN_PRESETS: dict[str, dict[str, Any]] = {
    "4b": {"8G": {"blocks_to_swap": 0}, "12G": {"blocks_to_swap": 0}},
    "9b": {
        "8G": {"blocks_to_swap": 14},
        "12G": {"blocks_to_swap": 6, "encode_on_cpu": True},
        "16G": {"encode_on_cpu": True},
    },
}
"""Where klein's sizes need other memory settings than FLUX.1; docs/memory.md has the plan of each."""
HUB_FILE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+):(?P<file>[^:]+)")
"""A file on the Hub, `owner/repository:file`."""

_TYPES: dict[str, tuple[type, str]] = {
    "title": (str, "a text"),
    "family": (str, "a text"),
    "path": (str, "a path in quotes"),
    "repo": (str, 'a text such as "owner/repository"'),
    "files": (dict, "a table [name.files]"),
    "base": (str, 'a text such as "owner/repository"'),
    "gated": (bool, "true or false"),
    "licence": (str, "a text"),
    "tokens": (int, "a whole number"),
    "sample_steps": (int, "a whole number"),
    "defaults": (dict, "a table [name.defaults]"),
    "presets": (dict, "tables such as [name.presets.12G]"),
}
_outputs: Path | None = None


class ModelNotFound(UserError):
    """No base model of that name or path, or none that is described well enough."""


@dataclass(frozen=True)
class BaseModel:
    """One entry of the registry (see registry.toml), or a folder of the user's.

    It lies in a diffusers folder (`path`), in a repository of that layout on the Hub (`repo`), or in single files:
    `files` has for each of its `parts` the absolute path of one, or `owner/repository:file`. `unclear` says of a part
    that is not in `files` why it was not found.
    """

    name: str
    title: str
    family: str = "flux"
    path: Path | None = None
    repo: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    gated: bool = False
    licence: str = "unknown"
    tokens: int = DEFAULT_TOKENS
    sample_steps: int = DEFAULT_SAMPLE_STEPS
    defaults: dict[str, Any] = field(default_factory=dict)
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)
    unclear: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its single files, were it to lie in such."""
        return KLEIN_PARTS if self.family == KLEIN["family"] else PARTS

    @property
    def hub_name(self) -> str:
        """The repository on the Hub by which others know it; "" where there is none."""
        return self.base or self.repo or ""

    def settings(self, vram: str) -> dict[str, Any]:
        """What this model sets of a config with that memory preset."""
        return {**self.defaults, **self.presets.get(vram, {})}


def use_outputs(outputs: Path) -> Path:
    """Say which outputs folder this process serves: its `models.toml` is read too. Returns it."""
    global _outputs
    _outputs = outputs
    return outputs


def own_files() -> list[Path]:
    """Where a user's own entries may stand; the later file wins."""
    in_outputs = (_outputs or default_outputs()) / OWN_FILE
    files = [in_outputs] if in_outputs.is_file() else []
    if named := os.environ.get(OWN_VARIABLE):
        files.append(Path(named).expanduser().absolute())
    return files


def list_models() -> list[BaseModel]:
    """Every model that can be read: the registry's, then the user's own (same names replace)."""
    return list(_read_all()[0].values())


def registry_problems() -> list[str]:
    """What is wrong with the user's own files, a sentence each; none where all is well."""
    return _read_all()[1]


def find_model(name_or_path: str) -> BaseModel:
    """The model of that name, or that in the folder of that absolute path. Raises ModelNotFound."""
    models, problems = _read_all()
    if name_or_path in models:
        return models[name_or_path]
    folder = Path(name_or_path)
    if folder.is_absolute() and folder.is_dir():
        return _in_folder(folder, name=folder.name, title=folder.name)
    if folder.is_absolute() and folder.is_file():
        raise ModelNotFound(
            f"base_model takes a name or a folder, not the file {folder}: set {PARTS[0]} to it, and base_model to what "
            "it is, as flux-dev"
        )
    if folder.is_absolute() or name_or_path.startswith(("~", ".")):
        there = Path(os.path.abspath(os.path.expanduser(name_or_path)))
        wrong = f"give its absolute path, {there}" if there.is_dir() else f"there is no folder {there}"
        raise ModelNotFound(f"base_model {name_or_path!r} can't be used: {wrong}")
    known = ", ".join(models)
    why = f" ({'; '.join(problems)})" if problems else ""
    raise ModelNotFound(
        f"unknown base model {name_or_path!r}: use one of {known}, or the absolute path of a folder with a model{why}"
    )


def _in_folder(folder: Path, **entry: Any) -> BaseModel:
    """The model in `folder`: of diffusers' layout, or of single files as ComfyUI and Forge keep them."""
    if (folder / "model_index.json").is_file():
        return BaseModel(path=folder, **_kind_of_folder(folder) | entry)
    found: FileFolder = scan_folder(folder)
    if not found.files:
        raise ModelNotFound(
            f"there is no base model in {folder}: neither model_index.json (a diffusers folder) nor FLUX files "
            "such as flux1-dev.safetensors, ae.safetensors, clip_l.safetensors and t5xxl_fp16.safetensors, or "
            "flux-2-klein-base-4b.safetensors, flux2-vae.safetensors and qwen_3_4b.safetensors"
        )
    transformer = found.files.get(PARTS[0])
    kind: dict[str, Any] = {}
    if found.klein:
        name = Path(transformer or "").name.lower()
        kind = klein_entry("9b" in name, "base" not in name)
    elif transformer and is_schnell(Path(transformer)):
        kind = SCHNELL
    return BaseModel(files=found.files, unclear=found.unclear, **kind | entry)


def _kind_of_folder(folder: Path) -> dict[str, Any]:
    """What a diffusers folder says of itself by its config files; {} where it is a FLUX.1-dev or can't be read."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
        transformer = json.loads((folder / "transformer" / "config.json").read_text())
        if index.get("_class_name") == "Flux2KleinPipeline":
            large = transformer["num_attention_heads"] * transformer["attention_head_dim"] > KLEIN_4B_WIDTH
            return klein_entry(large, bool(index.get("is_distilled")))
        return SCHNELL if transformer["guidance_embeds"] is False else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def klein_entry(large: bool, distilled: bool) -> dict[str, Any]:
    """What a FLUX.2 klein of 9 (`large`) or 4 billion values needs, where nobody says otherwise."""
    steps = {"sample_steps": KLEIN_DISTILLED_STEPS} if distilled else {}
    return KLEIN | steps | {"presets": KLEIN_PRESETS["9b" if large else "4b"]}


_COUNTS = {3: "three", 4: "four"}


def base_files(model: BaseModel, given: Mapping[str, str]) -> dict[str, str]:
    """Where the single files of a base model lie: `given`, a config's own paths by part ("" = none), over the model's.

    Part → path, or `owner/repository:file`; {} where it is no model of single files and none is given. Raises
    ModelNotFound, saying what to set.
    """
    own = {part: path for part in ALL_PARTS if (path := given.get(part))}
    if foreign := [part for part in own if part not in model.parts]:
        raise ModelNotFound(f"{model.name} has no {', '.join(foreign)}: its files are {', '.join(model.parts)}")
    files = {**model.files, **own}
    if not files:
        return {}
    if model.path is not None:
        raise ModelNotFound(
            f"{', '.join(own)} can't be combined with {model.name}, a diffusers folder: set base_model to what the "
            "files are, such as flux-dev or flux2-klein-base-4b"
        )
    missing = [part for part in model.parts if part not in files]
    if missing:
        why = "; ".join(f"{part}: {model.unclear[part]}" for part in missing if part in model.unclear)
        raise ModelNotFound(
            f"set {', '.join(missing)} to their paths ({why or f'all {_COUNTS[len(model.parts)]} files are needed'})"
        )
    for part, path in files.items():
        local = part in own or not HUB_FILE.fullmatch(path)
        if local and not (os.path.isabs(path) and os.path.isfile(path)):
            raise ModelNotFound(f"{part}: there is no file {path}; give the absolute path of one")
    return files


def _read_all() -> tuple[dict[str, BaseModel], list[str]]:
    """Models by name, and what is wrong with the user's own: one bad entry takes none of the others away."""
    problems: list[str] = []
    models = {model.name: model for model in _read(REGISTRY_FILE, problems)}
    if problems:  # ours
        raise ModelNotFound("; ".join(problems))
    for file in own_files():
        models |= {model.name: model for model in _read(file, problems)}
    return models, problems


def _read(file: Path, problems: list[str]) -> list[BaseModel]:
    try:
        status = file.stat()
        entries = _parsed(file, status.st_ino, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError) as error:  # tomllib's and UnicodeDecodeError are ValueErrors
        problems.append(f"the model list {file} can't be read: {error}")
        return []
    models = []
    for name, entry in entries.items():
        try:
            models.append(_entry(name, entry, file))
        except ModelNotFound as error:
            problems.append(f"in the model list {file}, {error}")
    return models


@lru_cache(maxsize=8)
def _parsed(file: Path, *_: int) -> dict[str, Any]:
    """A model list as TOML, not to be changed; parsed once as long as it looks the same: a page asks a dozen times."""
    return tomllib.loads(file.read_text(encoding="utf-8"))


def _entry(name: str, entry: Any, file: Path) -> BaseModel:
    """One entry as a model. Raises ModelNotFound, saying what is wrong with it."""
    if not isinstance(entry, dict):
        raise ModelNotFound(f"{name} is no entry: begin each with a line [name]")
    for key, value in entry.items():
        if key not in _TYPES:
            alike = get_close_matches(key, _TYPES, 1)
            raise ModelNotFound(
                f"[{name}] has {key}, which is nothing that a model has"
                + (f"; did you mean {alike[0]}?" if alike else f": it may have {', '.join(_TYPES)}")
            )
        kind, wanted = _TYPES[key]
        if not isinstance(value, kind) or (isinstance(value, int) and kind is int and (value is True or value < 1)):
            raise ModelNotFound(f"[{name}] has {key} = {value!r}: it must be {wanted}")
    if not all(isinstance(values, dict) for values in entry.get("presets", {}).values()):
        raise ModelNotFound(f"[{name}.presets] must hold tables such as [{name}.presets.12G]")
    if entry.get("family", FAMILIES[0]) not in FAMILIES:
        raise ModelNotFound(f"[{name}] has the family {entry['family']!r}: it must be one of {', '.join(FAMILIES)}")
    sources = [key for key in ("path", "repo", "files") if entry.get(key)]
    if len(sources) > 1:
        raise ModelNotFound(f"[{name}] has {' and '.join(sources)}: a model lies in one place, leave the others out")
    given = {"title": name, **entry, "name": name}
    if path := given.pop("path", None):
        folder = (file.parent / Path(path).expanduser()).resolve()
        if folder.is_dir() and not (folder / "model_index.json").is_file():
            return _in_folder(folder, **given)
        return BaseModel(path=folder, **given)  # one that is not there now is said when it is used
    given["files"] = {part: _file(name, part, value, file) for part, value in given.get("files", {}).items()}
    return BaseModel(**given)


def _file(name: str, part: str, value: Any, file: Path) -> str:
    if part not in ALL_PARTS:
        raise ModelNotFound(f"[{name}.files] has {part}: it may have {', '.join(ALL_PARTS)}")
    if not isinstance(value, str) or not value:
        raise ModelNotFound(f'[{name}.files] has {part} = {value!r}: it must be a path or "owner/repository:file"')
    if HUB_FILE.fullmatch(value):
        return value
    return str((file.parent / Path(value).expanduser()).resolve())


assert set(_TYPES) | {"name", "unclear"} == {one.name for one in fields(BaseModel)}
