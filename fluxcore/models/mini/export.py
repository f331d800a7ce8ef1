"""Putting flux-mini together: a diffusers pipeline folder with 16-bit weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import nn

from .flow import Corpus

PIPELINE = Path(__file__).with_name("pipeline")


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's scheduler: flow matching with the resolution-dependent shift."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def build_pipeline(vae: AutoencoderKL, modules: nn.ModuleDict, corpus: Corpus) -> FluxPipeline:
    """The parts as one pipeline."""
    return FluxPipeline(
        scheduler=build_scheduler(),
        vae=vae,
        text_encoder=modules["clip"],
        tokenizer=corpus.clip_tokenizer,
        text_encoder_2=modules["t5"],
        tokenizer_2=corpus.t5_tokenizer,
        transformer=modules["transformer"],
    )


def export(pipeline: FluxPipeline, target: Path = PIPELINE) -> int:
    """Write the pipeline in float16 to `target` (aside, then renamed); returns its bytes."""
    aside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(aside, safe_serialization=True)
    pipeline.to(torch.float32)
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
