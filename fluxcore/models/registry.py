"""The list of base models. Light on purpose: app and runner read it too; loading lives in `loading.py`."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxcore.errors import UserError

REGISTRY_FILE = Path(__file__).with_name("registry.toml")
DEFAULT_TOKENS = 512


class ModelNotFound(UserError):
    """No base model of that name or path."""


@dataclass(frozen=True)
class BaseModel:
    """One entry of the registry (see registry.toml). `path` is None for a model of the Hub."""

    name: str
    title: str
    family: str = "flux"
    path: Path | None = None
    repo: str | None = None
    gated: bool = False
    licence: str = "unknown"
    tokens: int = DEFAULT_TOKENS
    defaults: dict[str, Any] = field(default_factory=dict)


def list_models() -> list[BaseModel]:
    """The models of registry.toml, then those of the file that FLUXGYM_MODELS names (same names replace)."""
    models = {model.name: model for model in _read(REGISTRY_FILE)}
    if extra := os.environ.get("FLUXGYM_MODELS"):
        models |= {model.name: model for model in _read(Path(extra))}
    return list(models.values())


def find_model(name_or_path: str) -> BaseModel:
    """The model of that name, or the diffusers folder of that path. Raises ModelNotFound."""
    models = list_models()
    for model in models:
        if model.name == name_or_path:
            return model
    folder = Path(name_or_path)
    if folder.is_absolute() and (folder / "model_index.json").is_file():
        return BaseModel(name=folder.name, title=folder.name, path=folder)
    known = ", ".join(model.name for model in models)
    raise ModelNotFound(
        f"unknown base model {name_or_path!r}: use one of {known}, or the absolute path of a diffusers folder"
    )


def _read(file: Path) -> list[BaseModel]:
    try:
        entries = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ModelNotFound(f"the model registry {file} can't be read: {error}") from None
    models = []
    for name, entry in entries.items():
        try:
            path = entry.pop("path", None)
            models.append(BaseModel(name=name, path=(file.parent / path).resolve() if path else None, **entry))
        except (TypeError, AttributeError) as error:
            raise ModelNotFound(f"the model registry {file} has a wrong entry [{name}]: {error}") from None
    return models
