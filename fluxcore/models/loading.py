"""Loading base models: one path for flux-mini, a diffusers folder and single files. Needs torch."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .hidden import hide_seldom_needed

# Their notices and bars are for notebooks; train.log is read by people. Set before the imports, where it is read.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
hide_seldom_needed()

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer
from transformers.utils import logging as transformers_logging

from . import single_files
from .errors import DownloadError, ModelError
from .files import PARTS, SingleFiles
from .folders import load_folder
from .locating import Base, locate
from .registry import DEFAULT_TOKENS
from .tokenizers import find_tokenizers

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


@dataclass
class PromptEmbedding:
    """What the transformer sees of one prompt: `pooled` (P,) from CLIP, `sequence` (T, D) from T5."""

    pooled: torch.Tensor
    sequence: torch.Tensor


class TextSide:
    """The tokenizers and text encoders. Freed once every prompt is encoded."""

    def __init__(self, base: Base, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self._tokens = tokens
        self._pipeline = _load(base, dtype, transformer=None, vae=None).to(device)

    @torch.no_grad()
    def encode(self, prompt: str) -> PromptEmbedding:
        """Encode one prompt as `FluxPipeline` does; the result is on the CPU."""
        sequence, pooled, _ = self._pipeline.encode_prompt(prompt, None, max_sequence_length=self._tokens)
        return PromptEmbedding(pooled[0].cpu(), sequence[0].cpu())


def load_image_side(base: Base, dtype: torch.dtype, device: torch.device) -> FluxPipeline:
    """The transformer, VAE and scheduler as a pipeline without text encoders; `dtype` is the transformer's.

    The VAE stays in 32 bit: FLUX's is small, and loses detail in less.
    """
    pipeline = _load(base, dtype, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None)
    pipeline.to(device)
    pipeline.vae.to(torch.float32)
    for part in (pipeline.transformer, pipeline.vae):
        part.requires_grad_(False)
    return pipeline


def load_pipeline(base: Base, dtype: torch.dtype = torch.float32) -> FluxPipeline:
    """The whole pipeline on the CPU."""
    return _load(base, dtype)


def _load(base: Base, dtype: torch.dtype, **without: Any) -> FluxPipeline:
    """The pipeline on the CPU, without the parts that `without` names. Raises ModelError or DownloadError."""
    load: Any = _from_files if isinstance(base, SingleFiles) else _from_folder
    pipeline = load(base, dtype, **without)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _from_files(base: SingleFiles, dtype: torch.dtype, **without: Any) -> FluxPipeline:
    transformer, ae, clip_l, t5xxl = (base.files[part] for part in PARTS)
    parts: dict[str, Any] = dict(without)
    if "transformer" not in without:
        parts["transformer"] = single_files.load_transformer(transformer, dtype)
    if "vae" not in without:
        parts["vae"] = single_files.load_vae(ae)
    if "tokenizer" not in without:
        clip_tokenizer, t5_tokenizer = find_tokenizers(base.tokenizers, transformer)
        clip, t5 = single_files.load_clip(clip_l, dtype), single_files.load_t5(t5xxl, dtype)
        parts |= {"text_encoder": clip, "text_encoder_2": t5}
        parts["tokenizer"] = _tokenizer(CLIPTokenizer, clip_tokenizer, single_files.CLIP_TOKENS, clip)
        parts["tokenizer_2"] = _tokenizer(T5Tokenizer, t5_tokenizer, DEFAULT_TOKENS, t5)
    return FluxPipeline(scheduler=single_files.scheduler_for(transformer), **parts)


def _tokenizer(kind: Any, folder: Path, length: int, encoder: Any) -> Any:
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True, model_max_length=length)
        highest = max(tokenizer.get_vocab().values())
    except Exception as error:  # the library's own, of many kinds
        raise ModelError(f"the tokenizer in {folder} can't be read: {_first_line(error)}") from None
    if highest >= encoder.config.vocab_size:
        raise ModelError(
            f"the tokenizer in {folder} is another model's: it has {highest + 1} words, the text encoder "
            f"{encoder.config.vocab_size}"
        )
    return tokenizer


def _from_folder(folder: Path, dtype: torch.dtype, **without: Any) -> FluxPipeline:
    parts = {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
    }
    return load_folder(FluxPipeline, parts, folder, dtype, without)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


__all__ = [
    "Base",
    "DownloadError",
    "ModelError",
    "PromptEmbedding",
    "TextSide",
    "load_image_side",
    "load_pipeline",
    "locate",
]
