"""Where the tokenizers are: single files of weights bring none with them. No torch.

They are small, and the same for every FLUX.1 and for every klein, so any copy will do.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from .errors import ModelError
from .registry import list_models

CLIP_REPO, T5_REPO = "openai/clip-vit-large-patch14", "google/t5-v1_1-xxl"
"""Where sd-scripts fetch them from as well."""
QWEN_REPO = "Qwen/Qwen3-4B"
"""Klein's tokenizer; Qwen3-8B has the same."""
DOWNLOADS = {
    CLIP_REPO: ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    T5_REPO: ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"),
    QWEN_REPO: ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
}
# A folder with all files of one of these is a tokenizer.
_CLIP_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_T5_FILES = (("tokenizer.json",), ("spiece.model",))
# With it the form of a chat, which a prompt to Qwen3 is put into.
_QWEN_FILES = (("tokenizer.json", "tokenizer_config.json"), ("vocab.json", "merges.txt", "tokenizer_config.json"))


def find_tokenizers(given: str, beside: Path) -> tuple[Path, Path]:
    """The folders of CLIP's tokenizer and of T5's.

    `given`: a folder that has them, as a diffusers folder of FLUX.1 (`tokenizer`, `tokenizer_2`) or sd-scripts'
    `--tokenizer_cache_dir` does; "" = beside the weights file `beside`, or in the Hub's cache on this machine. Nothing
    is fetched. Raises ModelError, saying what to do.
    """
    if given:
        folders = [Path(given).expanduser()]
    else:
        folders = [beside.parent, beside.parent.parent, *_cached_pipelines("flux")]
    clip = _first([place for folder in folders for place in _places(folder, "tokenizer", CLIP_REPO)], _CLIP_FILES)
    t5 = _first([place for folder in folders for place in _places(folder, "tokenizer_2", T5_REPO)], _T5_FILES)
    if not given:
        clip = clip or _first(_cached(CLIP_REPO, "tokenizer_config.json"), _CLIP_FILES)
        t5 = t5 or _first(_cached(T5_REPO, "spiece.model"), _T5_FILES)
    if clip and t5:
        return clip, t5
    lacking = " and ".join(name for name, found in (("CLIP-L", clip), ("T5", t5)) if not found)
    where = f"in {given}" if given else "on this machine"
    raise ModelError(
        f"there is no tokenizer of {lacking} {where}: set tokenizer_cache_dir to a diffusers folder of FLUX.1 (its "
        f"tokenizer and tokenizer_2 are enough), or to one with {_folder_name(CLIP_REPO)} and {_folder_name(T5_REPO)}"
    )


def find_qwen_tokenizer(given: str, beside: Path) -> Path:
    """The folder of klein's tokenizer: in `given`, else beside the weights file `beside` or in the Hub's cache here.

    Nothing is fetched. Raises ModelError, saying what to do.
    """
    if given:
        folder = Path(given).expanduser()
        places = [*_places(folder, "tokenizer", QWEN_REPO), folder]
    else:
        folders = [beside.parent, beside.parent.parent, *_cached_pipelines("flux2-klein")]
        places = [place for folder in folders for place in _places(folder, "tokenizer", QWEN_REPO)]
        places += _cached(QWEN_REPO, "tokenizer_config.json")
    if found := _first(places, _QWEN_FILES):
        return found
    raise ModelError(
        f"there is no tokenizer of Qwen3 {f'in {given}' if given else 'on this machine'}: set tokenizer_cache_dir to a "
        f"diffusers folder of FLUX.2 klein (its tokenizer is enough), or to one with {_folder_name(QWEN_REPO)}"
    )


def is_tokenizer(folder: Path) -> bool:
    """Whether the folder has all files of a tokenizer of any of these kinds."""
    return _first([folder], (*_CLIP_FILES, *_T5_FILES)) is not None


def _places(folder: Path, name: str, repo: str) -> list[Path]:
    return [folder / name, folder / _folder_name(repo)]


def _folder_name(repo: str) -> str:
    """As sd-scripts name it in their `--tokenizer_cache_dir`."""
    return repo.replace("/", "_")


def _cached_pipelines(family: str) -> list[Path]:
    """Cached snapshots of the registry's models of a family that are in diffusers' layout."""
    repos = [model.repo for model in list_models() if model.repo and model.family == family]
    return [path.parent for repo in repos for path in _cached(repo, "tokenizer/tokenizer_config.json")]


def _cached(repo: str, file: str) -> list[Path]:
    found = try_to_load_from_cache(repo, file)
    return [Path(found).parent] if isinstance(found, str) else []


def _first(places: Iterable[Path], choices: tuple[tuple[str, ...], ...]) -> Path | None:
    for place in places:
        if any(all((place / name).is_file() for name in names) for names in choices):
            return place
    return None
