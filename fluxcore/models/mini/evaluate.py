"""How good flux-mini is, in figures:

    python -m fluxcore.models.mini.evaluate

Prints the share of captions whose picture is nearest to its own emoji (blurred to 16 x 16, among all), with the
ceiling (the VAE's reconstruction of the true picture) and chance beside it, and the VAE's PSNR.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import FluxPipeline
from PIL import Image

from ..loading import load_pipeline
from .emoji import Emoji, load_emoji
from .export import PIPELINE
from .vae import vae_psnr

SEED = 7


def blurred(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (N, C, 64, 64) as rows of their 16 x 16 averages."""
    return torch.nn.functional.avg_pool2d(pictures, 4).flatten(1)


def share_nearest(pictures: torch.Tensor, own: list[int], among: torch.Tensor) -> float:
    """The share of `pictures` (N, 3, 64, 64) whose nearest of `among` (M, 3, 64, 64), blurred, is the one in `own`."""
    nearest = torch.cdist(blurred(pictures), blurred(among)).argmin(1)
    return float((nearest == torch.tensor(own)).float().mean())


@torch.no_grad()
def draw_captions(pipeline: FluxPipeline, captions: list[str], seed: int = SEED, batch: int = 50) -> torch.Tensor:
    """Pictures (N, 3, 64, 64) in 0..1 of `captions`, as the model card says: 20 steps, guidance 3.5, 64 tokens."""
    pictures = []
    for start in range(0, len(captions), batch):
        prompts = captions[start : start + batch]
        pictures.append(
            pipeline(
                prompts,
                width=64,
                height=64,
                num_inference_steps=20,
                guidance_scale=3.5,
                max_sequence_length=64,
                generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(prompts))],
                output_type="pt",
            ).images
        )
    return torch.cat(pictures)


@torch.no_grad()
def reconstruct(pipeline: FluxPipeline, pictures: torch.Tensor) -> torch.Tensor:
    """What the VAE makes of `pictures` (N, 3, 64, 64) in 0..1."""
    vae = pipeline.vae
    return (vae.decode(vae.encode(pictures * 2 - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)


def grid(pictures: torch.Tensor, columns: int) -> Image.Image:
    """Pictures (N, 3, H, W) in 0..1 as one image."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    sheet = torch.ones(3, rows * height, columns * width)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        sheet[:, top : top + height, left : left + width] = picture
    return Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).numpy())


def evaluate(pipeline: FluxPipeline, emoji: Emoji, count: int, sheet: Path | None) -> None:
    """Print the figures over `count` captions spread over all; write the pictures beside the true ones to `sheet`."""
    chosen = [round(i * (len(emoji.captions) - 1) / (count - 1)) for i in range(count)]
    true = emoji.on_white()
    drawn = draw_captions(pipeline, [emoji.captions[i] for i in chosen])
    rebuilt = reconstruct(pipeline, true[chosen])
    print(f"captions drawn nearest to their own emoji, of {count} among {len(true)}:")
    print(f"  flux-mini {share_nearest(drawn, chosen, true):.1%}")
    print(f"  ceiling (the VAE's reconstruction) {share_nearest(rebuilt, chosen, true):.1%}")
    print(f"  chance {1 / len(true):.2%}")
    plain, coloured = vae_psnr(pipeline.vae, emoji)
    print(f"VAE reconstructions: {plain:.2f} dB PSNR on emoji, {coloured:.2f} dB on recoloured emoji")
    if sheet:
        rows = torch.stack([true[chosen], rebuilt, drawn], 1).flatten(0, 1)
        grid(rows, 30).save(sheet)
        print(f"{sheet}: true, reconstructed, drawn, in turn")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, default=PIPELINE)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--sheet", type=Path, help="write the pictures to this PNG")
    arguments = parser.parse_args()
    evaluate(load_pipeline(arguments.pipeline), load_emoji(), arguments.count, arguments.sheet)


if __name__ == "__main__":
    main()
