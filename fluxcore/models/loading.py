"""Loading base models: one path for flux-mini, a local diffusers folder and the Hub. Needs torch."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Their notices and bars are for notebooks; train.log is read by people. Set before the imports, where it is read.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")

import torch
from diffusers import FluxPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from fluxcore.errors import UserError
from fluxcore.runs.checkpoints import safetensors_problem

from .registry import BaseModel

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

DOWNLOAD_PATTERNS = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]


class ModelError(UserError):
    """A base model that can't be loaded."""


class DownloadError(UserError):
    """A base model that can't be downloaded."""


def locate(model: BaseModel, on_progress: Callable[[float, float], None] | None = None) -> Path:
    """The diffusers folder of `model`, downloaded from the Hub (with HF_TOKEN) where it is not local.

    `on_progress(done, total)` counts files. Raises ModelError or DownloadError.
    """
    if model.path is not None:
        if not (model.path / "model_index.json").is_file():
            raise ModelError(f"the base model {model.name} is not at {model.path}: no model_index.json there")
        return model.path
    from huggingface_hub import get_token, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from tqdm.auto import tqdm

    class Progress(tqdm):  # type: ignore[type-arg]
        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if on_progress and self.total:
                on_progress(float(self.n), float(self.total))
            return shown

    try:
        return Path(
            snapshot_download(
                str(model.repo),
                allow_patterns=DOWNLOAD_PATTERNS,
                token=os.environ.get("HF_TOKEN"),
                tqdm_class=Progress,
            )
        )
    except GatedRepoError:
        page = f"https://huggingface.co/{model.repo}"
        if get_token():
            raise DownloadError(f"accept the licence of {model.repo} at {page}, with HF_TOKEN's account") from None
        raise DownloadError(
            f"{model.repo} is gated: accept its licence at {page}, and set HF_TOKEN to a token of that account"
        ) from None
    except RepositoryNotFoundError:
        raise DownloadError(f"there is no model {model.repo} on the Hub, or HF_TOKEN may not see it") from None
    except LocalEntryNotFoundError:
        raise DownloadError(
            f"{model.repo} could not be fetched: check the machine's connection to the internet (and its proxy)"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            raise DownloadError(
                "the Hub does not accept HF_TOKEN: make a new one at https://huggingface.co/settings/tokens and set it"
            ) from None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the disk's fault, which says what to do
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DownloadError(
            f"{model.repo} could not be downloaded ({first_line}); check the network and retry"
        ) from None


@dataclass
class PromptEmbedding:
    """What the transformer sees of one prompt: `pooled` (P,) from CLIP, `sequence` (T, D) from T5."""

    pooled: torch.Tensor
    sequence: torch.Tensor


class TextSide:
    """The tokenizers and text encoders. Freed once every prompt is encoded."""

    def __init__(self, folder: Path, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self._tokens = tokens
        self._pipeline = _load(folder, dtype, transformer=None, vae=None).to(device)

    @torch.no_grad()
    def encode(self, prompt: str) -> PromptEmbedding:
        """Encode one prompt as `FluxPipeline` does; the result is on the CPU."""
        sequence, pooled, _ = self._pipeline.encode_prompt(prompt, None, max_sequence_length=self._tokens)
        return PromptEmbedding(pooled[0].cpu(), sequence[0].cpu())


def load_image_side(folder: Path, dtype: torch.dtype, device: torch.device) -> FluxPipeline:
    """The transformer, VAE and scheduler as a pipeline without text encoders; `dtype` is the transformer's.

    The VAE stays in 32 bit: FLUX's is small, and loses detail in less.
    """
    pipeline = _load(folder, dtype, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None)
    pipeline.to(device)
    pipeline.vae.to(torch.float32)
    for part in (pipeline.transformer, pipeline.vae):
        part.requires_grad_(False)
    return pipeline


def damaged_file(folder: Path) -> Path | None:
    """A weights file below `folder` that can't be whole, where it really lies (the Hub's cache holds links)."""
    for path in sorted(folder.glob("*/*.safetensors")):
        try:
            if safetensors_problem(path):
                return path.resolve()
        except FileNotFoundError:
            continue
    return None


def load_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> FluxPipeline:
    """The whole pipeline on the CPU."""
    return _load(folder, dtype)


def _load(folder: Path, dtype: torch.dtype, **without: Any) -> FluxPipeline:
    try:
        pipeline = FluxPipeline.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **without
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if damaged := damaged_file(folder):
            raise DownloadError(
                f"a file of the base model is damaged, {damaged}: delete it so that it is fetched anew, or put a whole "
                "one there"
            ) from None
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"the base model at {folder} can't be loaded: {first_line}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
