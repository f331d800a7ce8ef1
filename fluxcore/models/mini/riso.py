"""The example dataset: emoji as risograph-like duotone prints, a style that flux-mini doesn't know.

    python -m fluxcore.models.mini.riso examples/riso

Dark indigo, coral and cream by luminance. A tonal style carries over to subjects that were not trained; thin line
drawings would not, because the VAE can't hold them.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import torch
from PIL import Image, ImageFont

from .emoji import FONT_PATH, STRIKE, composite, draw_emoji, gradient_map

TRIGGER = "r1so"
PALETTE = torch.tensor([[43, 34, 96], [241, 108, 90], [250, 240, 219]]) / 255  # indigo, coral, cream
PIXELS = 128

TRAINED = (
    "tangerine,cat face,octopus,rocket,tulip,mushroom,teddy bear,guitar,pineapple,owl,house building,"
    "smiling face with sunglasses,bicycle,penguin,birthday cake,cactus,butterfly,crown,steam locomotive,"
    "tropical fish,jack-o-lantern,hamburger"
).split(",")
"""The captions (without trigger word) of the example pictures."""

HELD_OUT = (
    "red apple,dog face,elephant,rose,ghost,slice of pizza,bear face,strawberry,robot face,whale,banana,fox face,"
    "avocado,basketball and hoop,trumpet,ship,watermelon,hatching chick,frog face,gem stone,cherries,turtle,"
    "evergreen tree,balloon"
).split(",")
"""Subjects that the example doesn't show, to see the style carried over."""


def in_style(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 3, H, W) in 0..1 in the example's duotone."""
    return gradient_map(pictures, PALETTE.expand(len(pictures), -1, -1))


def colours_of(folder: Path) -> torch.Tensor:
    """The style's palette: the different colours (M, 3), 0..255, of the pictures in `folder`, to 4 levels."""
    seen = []
    for path in sorted(folder.glob("*.png")):
        pixels = torch.frombuffer(bytearray(Image.open(path).convert("RGB").tobytes()), dtype=torch.uint8)
        seen.append((pixels.reshape(-1, 3).int() // 4).unique(dim=0))
    return torch.cat(seen).unique(dim=0).float() * 4 + 2


def palette_distance(pictures: torch.Tensor, palette: torch.Tensor) -> float:
    """Mean distance (in levels of 0..255) of the pixels of `pictures` (N, 3, H, W), 0..1, from `palette` (M, 3)."""
    pixels = pictures.permute(0, 2, 3, 1).reshape(-1, 3) * 255
    return float(torch.cat([torch.cdist(chunk, palette).amin(1) for chunk in pixels.split(8192)]).mean())


def main(target: Path) -> None:
    """Write the pictures, their captions and the demo's config to `target`."""
    font = ImageFont.truetype(str(FONT_PATH), STRIKE)
    target.mkdir(parents=True, exist_ok=True)
    for subject in TRAINED:
        drawn = draw_emoji(unicodedata.lookup(subject.upper()), font, PIXELS)
        assert drawn is not None, subject
        rgba = torch.frombuffer(bytearray(drawn.tobytes()), dtype=torch.uint8).reshape(PIXELS, PIXELS, 4)
        picture = composite(rgba.permute(2, 0, 1)[None] / 255, torch.ones(3))
        print_ = (in_style(picture)[0] * 255).round().byte().permute(1, 2, 0).contiguous()
        name = subject.replace(" ", "-")
        Image.fromarray(print_.numpy()).save(target / f"{name}.png", optimize=True)
        (target / f"{name}.txt").write_text(f"{TRIGGER}, {subject}\n")
    print(f"{len(TRAINED)} pictures in {target}; {len(HELD_OUT)} subjects held out")
    config = json.loads((target / "config.json").read_text()) if (target / "config.json").exists() else {}
    prompts = [f"{TRIGGER}, {subject}" for subject in HELD_OUT]
    (target / "held-out.prompts").write_text("\n".join(prompts) + "\n")
    config["sample_prompts"] = "\n".join(f"{TRIGGER}, {subject} --d 1" for subject in HELD_OUT[:4])
    config["concept_sentence"] = TRIGGER
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
