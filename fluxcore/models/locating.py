"""Where a base model lies on this machine, fetched first where it has to be. No torch: sd-scripts' trainer asks too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .download import INDEX, fetch_files, fetch_repository, is_cached
from .errors import DownloadError, ModelError
from .files import ALL_PARTS, KLEIN_PARTS, PARTS, SingleFiles
from .registry import HUB_FILE, BaseModel, base_files
from .tokenizers import DOWNLOADS, QWEN_REPO, find_qwen_tokenizer, find_tokenizers

if TYPE_CHECKING:
    from fluxcore.config import RunConfig

Progress = Callable[[float, float], None]
_FOLDERS = dict(zip(("transformer", "vae", "text_encoder", "text_encoder_2"), PARTS, strict=True))
_KLEIN_FOLDERS = dict(zip(("transformer", "vae", "text_encoder"), KLEIN_PARTS, strict=True))
Base = Path | SingleFiles
"""A diffusers folder, or single files."""


def is_remote(model: BaseModel, config: RunConfig | None = None) -> bool:
    """Whether some of it comes from the Hub (or its cache on this machine). Raises ModelNotFound."""
    files = base_files(model, _given(config))
    return any(HUB_FILE.fullmatch(path) for path in files.values()) or (not files and model.repo is not None)


def is_here(model: BaseModel) -> bool:
    """Whether a model of the list lies on this machine whole, in its place or in the Hub's cache. Asks no network."""
    if model.path is not None:
        return (model.path / "model_index.json").is_file()
    if model.repo is not None:
        return is_cached(model.repo, INDEX)
    return set(model.files) == set(model.parts) and all(
        is_cached(found["repo"], found["file"]) if (found := HUB_FILE.fullmatch(where)) else Path(where).is_file()
        for where in model.files.values()
    )


def locate(model: BaseModel, on_progress: Progress | None = None, config: RunConfig | None = None) -> Base:
    """The base model as it lies here: `config` may name its single files. Fetched from the Hub (with HF_TOKEN) where
    it is not local; `on_progress(done, total)` counts what is fetched.

    Raises ModelNotFound, ModelError or DownloadError.
    """
    if files := locate_files(model, on_progress, config):
        return _with_tokenizers(files, model, config)
    if model.path is not None:
        if not (model.path / "model_index.json").is_file():
            raise ModelError(f"the base model {model.name} is not at {model.path}: no model_index.json there")
        return model.path
    if model.repo is None:
        raise ModelError(f"the base model {model.name} has no place: set {', '.join(model.parts)} to its files")
    return fetch_repository(model.repo, on_progress)


def locate_files(
    model: BaseModel, on_progress: Progress | None = None, config: RunConfig | None = None
) -> dict[str, Path]:
    """The base model's single files by part, as `locate` finds them; {} where it has none."""
    files = base_files(model, _given(config))
    hub = {part: found for part, where in files.items() if (found := HUB_FILE.fullmatch(where))}
    fetched = fetch_files([(found["repo"], found["file"]) for found in hub.values()], on_progress)
    local = dict(zip(hub, fetched, strict=True))
    return {part: local.get(part) or Path(where) for part, where in files.items()}


def files_behind(base: Base, parts: Iterable[str]) -> list[Path]:
    """The files that make up these parts of a base model, named as diffusers' subfolders are, such as `vae`.

    By them a cache knows whether a model is still the one that it holds something of.
    """
    if isinstance(base, Path):
        return sorted(path for part in parts for path in (base / part).rglob("*") if path.is_file())
    found: list[Path] = []
    folders = _KLEIN_FOLDERS if base.klein else _FOLDERS
    for part in parts:
        if part in folders:
            found.append(base.files[folders[part]])
        elif folder := _tokenizer_folders(base).get(part):
            found += [path for path in folder.rglob("*") if path.is_file()]
    return sorted(found)


def _tokenizer_folders(base: SingleFiles) -> dict[str, Path]:
    """Where the tokenizers of single files are, by diffusers' names. Raises ModelError."""
    if base.klein:
        return {"tokenizer": find_qwen_tokenizer(base.tokenizers, base.files[PARTS[0]])}
    clip, t5 = find_tokenizers(base.tokenizers, base.files[PARTS[0]])
    return {"tokenizer": clip, "tokenizer_2": t5}


def _with_tokenizers(files: dict[str, Path], model: BaseModel, config: RunConfig | None) -> SingleFiles:
    base = SingleFiles(files, config.tokenizer_cache_dir if config else "")
    try:
        _tokenizer_folders(base)
    except ModelError:
        if base.tokenizers or not is_remote(model, config):  # a person's own files are used without a network
            raise
        fetch_files(
            (repo, name) for repo, names in DOWNLOADS.items() for name in names if (repo == QWEN_REPO) == base.klein
        )
    return base


def _given(config: RunConfig | None) -> dict[str, str]:
    return {part: str(getattr(config, part)) for part in ALL_PARTS} if config else {}


__all__ = [
    "Base",
    "DownloadError",
    "ModelError",
    "Progress",
    "files_behind",
    "is_here",
    "is_remote",
    "locate",
    "locate_files",
]
