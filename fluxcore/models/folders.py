"""Diffusers' folders: each part loaded with every tensor accounted for. Needs torch, and loading.py imported first.

The libraries fill a part that lacks tensors with random ones and pass over those that it should not have, with a
warning at most; a LoRA trained on that is worth nothing. Here both are errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError

from fluxcore.runs.checkpoints import safetensors_problem

from .errors import DownloadError, ModelError
from .tokenizers import is_tokenizer

_NOT_NEEDED = re.compile(
    # Counted or derived, not learned; older versions of the libraries wrote them into the files.
    r"(.*\.)?(position_ids|inv_freq|num_batches_tracked)"
    # What the models say beside what is read here; a text encoder may come with it or, as ComfyUI's Qwen3, without.
    r"|lm_head\.weight|text_projection\.weight|logit_scale"
)
_MISSHAPEN = re.compile(r"(\S+) expected shape")
_TWICE = re.compile(r"shared\.weight|encoder\.embed_tokens\.weight")
"""One tensor of T5's under two names: a file has either, which transformers knows, or both."""


def load_folder(
    pipeline: Any, parts: Mapping[str, Any], folder: Path, dtype: torch.dtype, without: Mapping[str, None]
) -> Any:
    """The pipeline of class `pipeline` on the CPU, its `parts` (class by name) in `dtype`, some left out.

    Raises ModelError or DownloadError with what to do.
    """
    names = [name for name in signature(pipeline).parameters if name.startswith("tokenizer") and name not in without]
    if lacking := [name for name in names if not is_tokenizer(folder / name)]:
        raise ModelError(
            f"the base model at {folder} has no {' and no '.join(lacking)}: copy that folder of the model there too, "
            "or name another one in base_model"
        )
    try:
        loaded = {name: _part(kind, folder / name, dtype) for name, kind in parts.items() if name not in without}
        return pipeline.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **without, **loaded
        )
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if damaged := damaged_file(folder):
            raise DownloadError(
                f"a file of the base model is damaged, {damaged}: delete it so that it is fetched anew, or put a whole "
                "one there"
            ) from None
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"the base model at {folder} can't be loaded: {first}") from None


def damaged_file(folder: Path) -> Path | None:
    """A weights file below `folder` that can't be whole, where it really lies (the Hub's cache holds links)."""
    for path in sorted(folder.glob("*/*.safetensors")):
        try:
            if safetensors_problem(path):
                return path.resolve()
        except FileNotFoundError:
            continue
    return None


def _part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """One part in `dtype`. Raises ModelError where its files lack tensors or have others; the libraries' own errors."""
    precision = {"torch_dtype" if issubclass(kind, ModelMixin) else "dtype": dtype}
    try:
        model, found = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **precision
        )
    except (ValueError, RuntimeError) as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        name = _MISSHAPEN.search(str(error))
        raise _not_those(folder, f"{name[1] if name else 'a tensor'} has another shape") from None
    told = []
    if missing := _needed(found["missing_keys"]):
        told.append(f"they lack {missing}")
    if left_over := _needed(name for name in found["unexpected_keys"] if not _TWICE.fullmatch(name)):
        told.append(f"they have {left_over} that they should not have")
    if told:
        raise _not_those(folder, ", and ".join(told))
    return model


def _not_those(folder: Path, told: str) -> ModelError:
    return ModelError(
        f"the files in {folder} are not those of its config.json: {told}; download the model again, or name another "
        "one in base_model"
    )


def _needed(names: Iterable[str]) -> str:
    """The first of the tensors that count, and how many more there are; "" where there is none."""
    wrong = sorted(name for name in names if not _NOT_NEEDED.fullmatch(name))
    return wrong[0] + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "") if wrong else ""
