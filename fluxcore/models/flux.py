"""FLUX.1 as the trainer sees it: latents, packing, the velocity, and what a LoRA is put on."""

from __future__ import annotations

import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from PIL import Image

from .family import Drawing, Family, Grid, PromptBatch
from .loading import TextSide, load_image_side

LORA_TARGETS = (
    r"(single_)?transformer_blocks\.\d+\.("
    r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|ff\.net\.(0\.proj|2)|ff_context\.net\.(0\.proj|2)"
    r"|proj_mlp|proj_out|norm\.linear|norm1\.linear|norm1_context\.linear)"
)
"""Every linear layer of the blocks, modulation included: what sd-scripts' `networks.lora_flux` trains."""


@torch.no_grad()
def encode_pictures(pipeline: FluxPipeline, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised latents (B, C, h, w) on the CPU of `pixels` (B, 3, H, W) in -1..1: the posterior's mean."""
    vae = pipeline.vae
    latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
    return ((latents - vae.config.shift_factor) * vae.config.scaling_factor).float().cpu()


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) to FLUX's tokens (B, h/2 * w/2, 4C)."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def grid(latents: torch.Tensor) -> Grid:
    """Rows and columns of the tokens of (…, C, h, w): one is 2 × 2 latents."""
    return latents.shape[-2] // 2, latents.shape[-1] // 2


def predict_velocity(
    pipeline: FluxPipeline,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    prompts: PromptBatch,
    guidance: float,
    grid: Grid,
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


@torch.no_grad()
def draw(pipeline: FluxPipeline, what: Drawing) -> Image.Image:
    """One picture by FluxPipeline's own sampling."""
    negative = {}
    if what.negative is not None:
        negative = {
            "negative_prompt_embeds": what.negative.sequence,
            "negative_pooled_prompt_embeds": what.negative.pooled,
        }

    def after_step(_: object, step: int, timestep: object, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        what.on_step()
        return values

    # The VAE waits on the host between drawings. It comes along first: some versions of diffusers draw where the first
    # of the pipeline's parts lies.
    vae, home = pipeline.vae, pipeline.vae.device
    try:
        vae.to(pipeline.transformer.device)
        latents = pipeline(
            prompt_embeds=what.positive.sequence,
            pooled_prompt_embeds=what.positive.pooled,
            **negative,
            true_cfg_scale=what.scale,
            width=what.width,
            height=what.height,
            num_inference_steps=what.steps,
            guidance_scale=what.guidance,
            generator=what.generator,
            callback_on_step_end=after_step,
            output_type="latent",
        ).images
        return _decode(pipeline, latents, what.height, what.width)
    finally:
        vae.to(home)


def _decode(pipeline: FluxPipeline, latents: torch.Tensor, height: int, width: int) -> Image.Image:
    """The picture of packed latents, in the VAE's own precision."""
    vae = pipeline.vae
    latents = FluxPipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor).to(vae.dtype)
    pixels = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
    return pipeline.image_processor.postprocess(pixels)[0]


def training_mu(image_tokens: int) -> float:
    """FLUX.1's shift for a picture of that many packed tokens, as an exponent.

    Black Forest Labs' `get_lin_function`: linear, 0.5 at 256 tokens, 1.15 at 4096.
    """
    slope = (1.15 - 0.5) / (4096 - 256)
    return 0.5 + slope * (image_tokens - 256)


def sampling_mu(pipeline: FluxPipeline, image_tokens: int, steps: int) -> float | None:
    """What FluxPipeline's sampler shifts by, at any number of steps: as its scheduler says; schnell's by nothing."""
    config = pipeline.scheduler.config
    if not config.use_dynamic_shifting:
        return None
    limits = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
    return float(calculate_shift(image_tokens, *limits))


def pixel_multiple(pipeline: FluxPipeline) -> int:
    """Width and height must be multiples of this many pixels: the VAE's factor times the packing's 2."""
    return int(pipeline.vae_scale_factor) * 2


FLUX_1 = Family(
    name="flux",
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
    key_names="flux1",
)
