"""The pictures flux-mini learns from: colour emoji drawn by a font, named by Unicode.

The font is Noto Color Emoji (SIL Open Font License 1.1; Debian: `fonts-noto-color-emoji`).
"""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

FONT_PATH = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109  # the only bitmap size inside Noto Color Emoji; its glyphs are 136 x 128
SIZE = 64
FIRST_CODE_POINT = 0x1F300  # below it: arrows, letters in boxes and regional indicators
LUMA = torch.tensor([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Emoji:
    """`captions[i]` names `rgba[i]`; `rgba` is float32 (N, 4, 64, 64) in 0..1, colour not premultiplied."""

    captions: list[str]
    rgba: torch.Tensor

    def on_white(self) -> torch.Tensor:
        """The pictures on white, float32 (N, 3, 64, 64) in 0..1."""
        return composite(self.rgba, torch.ones(3))


def caption_of(character: str) -> str:
    """The caption of an emoji: its Unicode name in lower case."""
    return unicodedata.name(character).lower()


def draw_emoji(character: str, font: ImageFont.FreeTypeFont, size: int = SIZE) -> Image.Image | None:
    """`character` as a square RGBA picture of `size` pixels, or None where the font has no colour glyph for it."""
    left, top, right, bottom = font.getbbox(character)
    if right - left < STRIKE:
        return None
    canvas = Image.new("RGBA", (136, 136), (0, 0, 0, 0))
    offset = (136 - (right - left)) // 2 - left, (136 - (bottom - top)) // 2 - top
    ImageDraw.Draw(canvas).text(offset, character, font=font, embedded_color=True)
    return canvas.resize((size, size), Image.Resampling.LANCZOS) if canvas.getbbox() else None


def load_emoji(font_path: Path = FONT_PATH) -> Emoji:
    """Every single-code-point emoji of the font from U+1F300 on, in their order; without the font the process ends."""
    if not font_path.exists():
        sys.exit(f"{font_path} is missing: apt-get install fonts-noto-color-emoji")
    font = ImageFont.truetype(str(font_path), STRIKE)
    captions, pictures = [], []
    for code in range(FIRST_CODE_POINT, 0x1FB00):
        character = chr(code)
        if unicodedata.category(character) != "So":
            continue
        picture = draw_emoji(character, font)
        if picture is not None:
            captions.append(caption_of(character))
            pictures.append(np.asarray(picture, dtype=np.float32) / 255)
    return Emoji(captions, torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous())


def composite(rgba: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """`rgba` (N, 4, H, W) over `background` (3,), (N, 3) or (N, 3, H, W); both in 0..1."""
    if background.dim() == 1:
        background = background[None]
    if background.dim() == 2:
        background = background[:, :, None, None]
    alpha = rgba[:, 3:]
    return rgba[:, :3] * alpha + background * (1 - alpha)


def gradient_map(pictures: torch.Tensor, palette: torch.Tensor) -> torch.Tensor:
    """Colour by luminance: `palette` (N, K, 3) runs from dark to light over `pictures` (N, 3, H, W)."""
    luma = torch.einsum("nchw,c->nhw", pictures, LUMA).clamp(0, 1)
    position = luma * (palette.shape[1] - 1)
    lower = position.floor().clamp(max=palette.shape[1] - 2).long()
    weight = (position - lower)[..., None]
    rows = torch.arange(len(pictures))[:, None, None]
    mixed = palette[rows, lower] * (1 - weight) + palette[rows, lower + 1] * weight
    return mixed.permute(0, 3, 1, 2)


def recolour(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture in colours of its own: a palette by luminance, a colour matrix, an inversion or grey."""
    count = len(pictures)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    two = gradient_map(pictures, rand(count, 2, 3))
    four = gradient_map(pictures, rand(count, 4, 3))
    noise = torch.randn(count, 3, 3, generator=generator)
    offset = (rand(count, 3) - 0.5) * 0.5
    matrix = torch.eye(3) + 0.35 * noise
    mixed = torch.einsum("nij,njhw->nihw", matrix, pictures - 0.5) + 0.5 + offset[:, :, None, None]
    grey = torch.einsum("nchw,c->nhw", pictures, LUMA)[:, None].expand_as(pictures)
    choices = torch.stack([two, four, mixed, 1 - pictures, grey])
    pick = torch.multinomial(torch.tensor([0.3, 0.25, 0.3, 0.07, 0.08]), count, replacement=True, generator=generator)
    return choices[pick, torch.arange(count)].clamp(0, 1)


def augment(rgba: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Training pictures for the VAE from `rgba` (N, 4, 64, 64): moved, on varied grounds, recoloured, with lines.

    A VAE that saw only the emoji as they are cannot decode another style, so a LoRA could not show one.
    """
    count = len(rgba)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    flip = rand(count) < 0.3
    rgba = torch.where(flip[:, None, None, None], rgba.flip(-1), rgba)
    scale = torch.where(rand(count) < 0.4, 0.75 + 0.6 * rand(count), torch.ones(count))
    shift = torch.where(rand(count, 1) < 0.4, (rand(count, 2) - 0.5) * 0.4, torch.zeros(count, 2))
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    moved = torch.nn.functional.affine_grid(theta, list(rgba.shape), align_corners=False)
    moved_rgba = torch.nn.functional.grid_sample(rgba, moved, align_corners=False, padding_mode="zeros")
    rgba = torch.where(((scale != 1) | (shift != 0).any(1))[:, None, None, None], moved_rgba, rgba)

    ground = rand(count, 3)
    ramp = torch.linspace(0, 1, SIZE)
    ramp = torch.where(rand(count)[:, None, None] < 0.5, ramp[None, :, None], ramp[None, None, :])[:, None]
    graded = ground[:, :, None, None] * (1 - ramp) + rand(count, 3)[:, :, None, None] * ramp
    style = rand(count)[:, None, None, None]
    flat = ground[:, :, None, None].expand_as(graded)
    background = torch.where(style < 0.55, torch.ones(()), torch.where(style < 0.85, flat, graded))
    pictures = composite(rgba, background)

    for index in torch.nonzero(rand(count) < 0.1).flatten().tolist():
        pictures[index] = _with_lines(pictures[index], generator)
    recoloured = recolour(pictures, generator)
    return torch.where((rand(count) < 0.5)[:, None, None, None], recoloured, pictures)


def _with_lines(picture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    image = Image.fromarray((picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(torch.randint(1, 6, (1,), generator=generator))):
        ends = torch.randint(0, SIZE, (4,), generator=generator).tolist()
        ink = tuple(torch.randint(0, 256, (3,), generator=generator).tolist())
        pen.line(ends, fill=ink, width=int(torch.randint(1, 5, (1,), generator=generator)))
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
