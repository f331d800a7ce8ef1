"""FLUX.2 klein as the trainer sees it: Qwen3's hidden layers, latents normalised by the VAE's statistics, LoRA targets.

Read from diffusers' `Flux2KleinPipeline`: a prompt is three hidden layers of Qwen3 side by side; a picture's latents
are patched 2 x 2 first and normalised per channel of the patches by running statistics; positions have four axes; the
sampler's shift depends on the number of tokens and of steps. There is no guidance embedding: what is distilled needs
none, what is not (`-base`) is drawn with classifier-free guidance.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image
from transformers import Qwen3ForCausalLM

from . import klein_files
from .family import Drawing, Family, Grid, PromptBatch
from .files import SingleFiles
from .flux import training_mu
from .folders import load_folder
from .loading import PromptEmbedding
from .locating import Base

LORA_TARGETS = (
    r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|ff\.linear_(in|out)|ff_context\.linear_(in|out))"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)
"""Every linear layer of the blocks. Their modulation is one for all blocks here, and left alone."""


class TextSide:
    """The tokenizer and Qwen3. Freed once every prompt is encoded."""

    def __init__(self, base: Base, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self._tokens = tokens
        self._pipeline = _load(base, dtype, transformer=None, vae=None).to(device)

    @torch.no_grad()
    def encode(self, prompt: str) -> PromptEmbedding:
        """Encode one prompt as the pipeline does; the result is on the CPU. There is nothing pooled."""
        sequence, _ = self._pipeline.encode_prompt(prompt, max_sequence_length=self._tokens)
        return PromptEmbedding(torch.zeros(0, dtype=sequence.dtype), sequence[0].cpu())


def load_image_side(base: Base, dtype: torch.dtype, device: torch.device) -> Flux2KleinPipeline:
    """The transformer (in `dtype`), VAE (in 32 bit) and scheduler as a pipeline without the text encoder."""
    pipeline = _load(base, dtype, text_encoder=None, tokenizer=None)
    pipeline.to(device)
    pipeline.vae.to(torch.float32)
    for part in (pipeline.transformer, pipeline.vae):
        part.requires_grad_(False)
    return pipeline


def _load(base: Base, dtype: torch.dtype, **without: Any) -> Flux2KleinPipeline:
    if isinstance(base, SingleFiles):
        pipeline = klein_files.load_pipeline(base, dtype, **without)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
    parts = {"transformer": Flux2Transformer2DModel, "vae": AutoencoderKLFlux2, "text_encoder": Qwen3ForCausalLM}
    pipeline = load_folder(Flux2KleinPipeline, parts, base, dtype, without)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def encode_pictures(pipeline: Flux2KleinPipeline, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised, patched latents (B, 4C, h/2, w/2) on the CPU of `pixels` (B, 3, H, W) in -1..1."""
    vae = pipeline.vae
    return pipeline._encode_vae_image(pixels.to(vae.device, vae.dtype), None).float().cpu()


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, D, h, w) to the transformer's tokens (B, h * w, D)."""
    return latents.flatten(2).transpose(1, 2)


def grid(latents: torch.Tensor) -> Grid:
    """Rows and columns of the tokens: the latents are patched already."""
    return latents.shape[-2], latents.shape[-1]


def predict_velocity(
    pipeline: Flux2KleinPipeline,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    prompts: PromptBatch,
    guidance: float,
    grid: Grid,
) -> torch.Tensor:
    """The transformer's velocity for tokens `noisy` (B, N, D) at `sigma` (B,) in 0..1."""
    positions = pipeline._prepare_latent_ids(torch.empty(len(noisy), 1, *grid, device="meta"))
    return pipeline.transformer(
        hidden_states=noisy,
        timestep=sigma.to(noisy.dtype),
        guidance=None,
        encoder_hidden_states=prompts.sequence,
        txt_ids=pipeline._prepare_text_ids(prompts.sequence).to(noisy.device),
        img_ids=positions.to(noisy.device),
        return_dict=False,
    )[0]


@torch.no_grad()
def draw(pipeline: Flux2KleinPipeline, what: Drawing) -> Image.Image:
    """One picture by the pipeline's own sampling. `guidance` counts for nothing, `scale` if it isn't distilled."""

    def after_step(_: object, step: int, timestep: object, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        what.on_step()
        return values

    latents = pipeline(
        prompt_embeds=what.positive.sequence,
        negative_prompt_embeds=None if what.negative is None else what.negative.sequence,
        guidance_scale=what.scale,
        width=what.width,
        height=what.height,
        num_inference_steps=what.steps,
        generator=what.generator,
        callback_on_step_end=after_step,
        output_type="latent",
    ).images
    vae, home = pipeline.vae, pipeline.vae.device
    try:
        vae.to(latents.device)
        pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    finally:
        vae.to(home)
    return pipeline.image_processor.postprocess(pixels)[0]


def sampling_mu(pipeline: Flux2KleinPipeline, image_tokens: int, steps: int) -> float | None:
    """What the pipeline's sampler shifts by: measured, not derived, by the number of tokens and of steps."""
    return float(compute_empirical_mu(image_tokens, steps))


def pixel_multiple(pipeline: Flux2KleinPipeline) -> int:
    """Width and height must be multiples of this many pixels: the VAE's factor times the patches' 2."""
    return int(pipeline.vae_scale_factor) * 2


FLUX_2_KLEIN = Family(
    name="flux2-klein",
    load_text_side=TextSide,
    load_image_side=load_image_side,
    encode_pictures=encode_pictures,
    pack=pack,
    grid=grid,
    predict=predict_velocity,
    draw=draw,
    pixel_multiple=pixel_multiple,
    training_mu=training_mu,
    sampling_mu=sampling_mu,
    lora_targets=LORA_TARGETS,
    key_names="flux2",
)
