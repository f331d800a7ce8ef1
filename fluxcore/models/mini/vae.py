"""flux-mini's VAE: a small `AutoencoderKL`, 64 x 64 pixels to 8 x 8 latents of 32 channels."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from .emoji import Emoji, augment, recolour
from .stages import Stage

LATENT_CHANNELS = 32  # FLUX.1 has 16; 32 is what keeps a picture of 64 x 64 sharp at a factor of 8
BATCH = 32
SEED = 20261123


def build_vae() -> AutoencoderKL:
    """The untrained VAE, 2.7 M parameters; its shift and scale are set after training, from its own latents."""
    channels = (16, 32, 64, 128)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
    )


def vae_stage(work: Path, steps: int) -> Stage:
    """The VAE's training stage, resumed where its checkpoint stands."""
    torch.manual_seed(SEED)
    return Stage(work / "vae.pt", nn.ModuleDict({"vae": build_vae()}), steps, learning_rate=1e-3)


def train_vae(stage: Stage, emoji: Emoji) -> None:
    """Reconstruct moved, recoloured and lined emoji on varied grounds (mean squared + absolute error + a little KL)."""
    vae = stage.modules["vae"]

    def loss_of(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(SEED + step)
        chosen = torch.randint(0, len(emoji.captions), (BATCH,), generator=generator)
        pictures = augment(emoji.rgba[chosen], generator) * 2 - 1
        noise = torch.randn(BATCH, LATENT_CHANNELS, 8, 8, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast where the processor has it
            posterior = vae.encode(pictures).latent_dist
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        difference = decoded.float() - pictures
        return difference.square().mean() + 0.1 * difference.abs().mean() + 1e-7 * posterior.kl().float().mean()

    def report(step: int, loss: float) -> None:
        line = f"vae {step}/{stage.steps}  loss {loss:.4f}  {stage.seconds:.0f} s"
        if step % 500 == 0 or step == stage.steps:
            plain, coloured = vae_psnr(vae, emoji, every=9)
            line += f"  PSNR {plain:.2f} dB plain, {coloured:.2f} dB recoloured"
        print(line, flush=True)

    stage.run(loss_of, report)


def decoder_stage(work: Path, steps: int, vae: AutoencoderKL) -> Stage:
    """The decoder's own stage: it starts as the VAE's decoder and trains in place, the encoder stays as it is."""
    return Stage(work / "decoder.pt", nn.ModuleDict({"decoder": vae.decoder}), steps, learning_rate=5e-4, warmup=50)


def train_decoder(stage: Stage, vae: AutoencoderKL, emoji: Emoji) -> None:
    """Better pictures from the same latents: squared error on the same augmented pictures."""

    def loss_of(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(SEED * 3 + step)
        chosen = torch.randint(0, len(emoji.captions), (BATCH,), generator=generator)
        pictures = augment(emoji.rgba[chosen], generator) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pictures).latent_dist.mean
            decoded = vae.decode(latents).sample
        return (decoded.float() - pictures).square().mean()

    def report(step: int, loss: float) -> None:
        line = f"decoder {step}/{stage.steps}  loss {loss:.4f}  {stage.seconds:.0f} s"
        if step % 500 == 0 or step == stage.steps:
            plain, coloured = vae_psnr(vae, emoji, every=9)
            line += f"  PSNR {plain:.2f} dB plain, {coloured:.2f} dB recoloured"
        print(line, flush=True)

    stage.run(loss_of, report)


@torch.no_grad()
def vae_psnr(vae: AutoencoderKL, emoji: Emoji, every: int = 1) -> tuple[float, float]:
    """Mean PSNR in dB of the reconstructions of the emoji on white, and of the same recoloured at random."""
    plain = emoji.on_white()[::every]
    coloured = recolour(plain, torch.Generator().manual_seed(SEED))
    return _psnr(vae, plain), _psnr(vae, coloured)


def _psnr(vae: AutoencoderKL, pictures: torch.Tensor) -> float:
    values = []
    for batch in pictures.split(64):
        decoded = vae.decode(vae.encode(batch * 2 - 1).latent_dist.mean).sample / 2 + 0.5
        error = (decoded.clamp(0, 1) - batch).square().mean(dim=(1, 2, 3))
        values.append(-10 * error.clamp_min(1e-10).log10())
    return float(torch.cat(values).mean())


@torch.no_grad()
def set_shift_and_scale(vae: AutoencoderKL, emoji: Emoji) -> torch.Tensor:
    """Set `shift_factor` and `scaling_factor` so that the latents of the emoji have mean 0 and deviation 1.

    Returns the normalised latents (N, 32, 8, 8) of the emoji on white.
    """
    latents = torch.cat([vae.encode(batch * 2 - 1).latent_dist.mean for batch in emoji.on_white().split(64)])
    shift, scale = float(latents.mean()), float(1 / latents.std())
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    return (latents - shift) * scale
