"""A run's result as one picture: prompts without the LoRA above, with it below, same seeds.

    python -m fluxcore.training.sheet --outputs outputs --run demo --prompts examples/riso/held-out.prompts

Writes `sheet.png` into the run's folder and prints its path.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from fluxcore.config import parse_saved
from fluxcore.errors import UserError
from fluxcore.models.family import Family, family_of
from fluxcore.models.locating import Base, locate
from fluxcore.models.registry import find_model, use_outputs
from fluxcore.runs import load_run

from .lora_file import read_lora
from .lora_keys import to_diffusers
from .prompts import SamplePrompt, parse_prompts
from .sampling import draw, save_png

TILE = 144
GAP = 10
LABEL = 20
MARGIN = 64


def before_and_after(
    family: Family, base: Base, lora: Path, prompts: list[SamplePrompt], tokens: int, resolution: int, seed: int
) -> tuple[list[Image.Image], list[Image.Image]]:
    """The prompts drawn by the base at `base`, and by the base with `lora` loaded as diffusers loads it."""
    cpu = torch.device("cpu")
    text = family.load_text_side(base, tokens, torch.float32, cpu)
    embeddings = {words: text.encode(words) for prompt in prompts for words in (prompt.text, prompt.negative)}
    del text
    pipeline = family.load_image_side(base, torch.float32, cpu)

    def row() -> list[Image.Image]:
        seeds = (seed + i if prompt.seed is None else prompt.seed for i, prompt in enumerate(prompts))
        return [draw(family, pipeline, p, embeddings, resolution, s) for p, s in zip(prompts, seeds, strict=True)]

    before = row()
    pipeline.load_lora_weights(to_diffusers(read_lora(lora)[0]))
    return before, row()


def compose(prompts: list[SamplePrompt], before: list[Image.Image], after: list[Image.Image]) -> Image.Image:
    """Both rows as one picture, each prompt written below its column."""
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    width = MARGIN + len(prompts) * (TILE + GAP) + GAP
    sheet = Image.new("RGB", (width, 2 * (TILE + GAP) + GAP + LABEL), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (label, pictures) in enumerate((("before", before), ("after", after))):
        top = GAP + row * (TILE + GAP)
        pen.text((MARGIN - 6, top + TILE // 2), label, fill="#444", font=font, anchor="rm")
        for column, picture in enumerate(pictures):
            left = MARGIN + GAP + column * (TILE + GAP)
            sheet.paste(picture.resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
    for column, prompt in enumerate(prompts):
        centre = MARGIN + GAP + column * (TILE + GAP) + TILE // 2
        pen.text((centre, sheet.height - LABEL // 2 - 2), prompt.text[:26], fill="#444", font=small, anchor="mm")
    return sheet


def main(argv: list[str] | None = None) -> int:
    """The command. Returns the exit code: 64 where the run has no LoRA or no prompts."""
    parser = argparse.ArgumentParser(prog="python -m fluxcore.training.sheet")
    parser.add_argument("--outputs", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--prompts", type=Path, help="a file of prompts, one a line; default: the run's own")
    parser.add_argument("--count", type=int, default=8, help="how many of them")
    arguments = parser.parse_args(argv)
    try:
        folder, state = load_run(use_outputs(arguments.outputs.absolute()), arguments.run)
        config = parse_saved(state.config)
        if not folder.final_weights.is_file():
            raise UserError(f"{arguments.run} has no finished LoRA yet")
        lines = arguments.prompts.read_text() if arguments.prompts else config.sample_prompts
        model = find_model(config.base_model)
        prompts = parse_prompts(lines, model.sample_steps)[: arguments.count]
        if not prompts:
            raise UserError(f"{arguments.run} has no sample prompts; name a file of them with --prompts")
        before, after = before_and_after(
            family_of(model),
            locate(model, config=config),
            folder.final_weights,
            prompts,
            model.tokens,
            config.resolution,
            config.seed,
        )
    except (UserError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 64
    target = folder.path / "sheet.png"
    save_png(compose(prompts, before, after), target, "\n".join(prompt.text for prompt in prompts))
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
