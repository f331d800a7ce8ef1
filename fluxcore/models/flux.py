"""FLUX.1 as the trainer sees it: latents, packing, the velocity, and what a LoRA is put on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import FluxPipeline

from .loading import PromptEmbedding

LORA_TARGETS = (
    r"(single_)?transformer_blocks\.\d+\.("
    r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|ff\.net\.(0\.proj|2)|ff_context\.net\.(0\.proj|2)"
    r"|proj_mlp|proj_out|norm\.linear|norm1\.linear|norm1_context\.linear)"
)
"""Every linear layer of the blocks, modulation included: what sd-scripts' `networks.lora_flux` trains."""


@dataclass
class PromptBatch:
    """Stacked embeddings: `pooled` (B, P), `sequence` (B, T, D)."""

    pooled: torch.Tensor
    sequence: torch.Tensor

    @classmethod
    def stack(cls, embeddings: list[PromptEmbedding], device: torch.device, dtype: torch.dtype) -> PromptBatch:
        return cls(
            torch.stack([one.pooled for one in embeddings]).to(device, dtype),
            torch.stack([one.sequence for one in embeddings]).to(device, dtype),
        )


@torch.no_grad()
def encode_pictures(pipeline: FluxPipeline, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised latents (B, C, h, w) on the CPU of `pixels` (B, 3, H, W) in -1..1: the posterior's mean."""
    vae = pipeline.vae
    latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
    return ((latents - vae.config.shift_factor) * vae.config.scaling_factor).float().cpu()


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) to FLUX's tokens (B, h/2 * w/2, 4C)."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def predict_velocity(
    pipeline: FluxPipeline,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    prompts: PromptBatch,
    guidance: float,
    grid: tuple[int, int],
) -> torch.Tensor:
    """The transformer's velocity for packed `noisy` (B, N, 4C) at `sigma` (B,) in 0..1; `grid` is (h/2, w/2).

    FLUX.1-schnell has no guidance embedding and is given none.
    """
    transformer = pipeline.transformer
    device, dtype = noisy.device, noisy.dtype
    embeds = transformer.config.guidance_embeds
    return transformer(
        hidden_states=noisy,
        timestep=sigma.to(dtype),
        guidance=torch.full((len(noisy),), guidance, device=device, dtype=torch.float32) if embeds else None,
        pooled_projections=prompts.pooled,
        encoder_hidden_states=prompts.sequence,
        txt_ids=torch.zeros(prompts.sequence.shape[1], 3, device=device, dtype=dtype),
        img_ids=FluxPipeline._prepare_latent_image_ids(1, *grid, device, dtype),
        return_dict=False,
    )[0]


def pixel_multiple(pipeline: FluxPipeline) -> int:
    """Width and height must be multiples of this many pixels: the VAE's factor times the packing's 2."""
    return int(pipeline.vae_scale_factor) * 2
