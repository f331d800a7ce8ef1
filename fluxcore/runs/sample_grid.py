"""A run's samples as one picture: a row for each prompt, a column for each step."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from fluxcore.errors import UserError

from .checkpoints import best_weights
from .files import RunFolder
from .fold import RunState
from .samples import Sample, by_prompt, drawn, sample_file, spread, step_of

SMALLEST, LARGEST = 128, 256
"""Pixels to a side of a cell: as the largest sample is, within these."""
MOST_PROMPTS = 24
"""Rows, so that the picture stays below 3,500 × 6,500 pixels (65 MiB while it is made)."""
MOST_PIXELS = 4096 * 4096
"""A larger file is none that a trainer draws (`--w` and `--h` end at 4096), and is not decoded."""
GAP, LABEL, HEADER, TEXT, LINE = 8, 260, 38, 20, 25
GREY, EMPTY = "#444", "#eee"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Finder = Callable[[RunFolder, Sample], Path | None]


def sample_grid(folder: RunFolder, state: RunState, find: Finder = sample_file) -> bytes:
    """PNG of the samples that `find` has a file for; at most MOST_STEPS columns and MOST_PROMPTS rows, which it says.

    The font is Pillow's own, which knows Latin letters only. Raises UserError where there are no samples.
    """
    found = [(sample, file) for sample in drawn(folder, state) if (file := find(folder, sample))]
    if not found:
        raise UserError(f"{folder.name} has no samples")
    files = {id(sample): file for sample, file in found}
    lines = list(by_prompt([sample for sample, _ in found]).values())
    rows = lines[:MOST_PROMPTS]
    steps = sorted({step_of(sample) for line in rows for sample in line})
    shown = spread(steps)
    cells = [{step_of(sample): files[id(sample)] for sample in line if step_of(sample) in shown} for line in rows]
    side = min(LARGEST, max(SMALLEST, *(_longest(file) for row in cells for file in row.values())))

    width = LABEL + len(shown) * (side + GAP) + GAP
    below = [*_left_out(len(steps) - len(shown), "step"), *_left_out(len(lines) - len(rows), "prompt")]
    head = 2 * HEADER  # the title, and the steps
    bottom = head + len(rows) * (side + GAP)
    sheet = Image.new("RGB", (width, bottom + (HEADER if below else 0)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    best = best_weights(folder, state)
    title = _wrapped(state.title or folder.name, font, width - 2 * GAP, 1)
    pen.text((GAP, HEADER // 2), title, fill="black", font=font, anchor="lm")
    for column, step in enumerate(shown):
        centre = LABEL + column * (side + GAP) + side // 2
        said = f"{step:,}, best" if best and best.step == step else f"step {step:,}" if not column else f"{step:,}"
        pen.text((centre, HEADER + HEADER // 2), said, fill=GREY, font=font, anchor="mm")
    for row, (line, files_at) in enumerate(zip(rows, cells, strict=True)):
        top = head + row * (side + GAP)
        prompt = _wrapped(str(line[-1].get("prompt") or "no prompt"), font, LABEL - 2 * GAP, side // LINE)
        pen.multiline_text((GAP, top), prompt, fill=GREY, font=font, spacing=LINE - TEXT)
        for column, step in enumerate(shown):
            left = LABEL + column * (side + GAP)
            small = _small(files_at[step], side) if step in files_at else None
            if small is None:
                pen.rectangle((left, top, left + side - 1, top + side - 1), fill=EMPTY)
            else:
                sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
    if below:
        pen.text((GAP, bottom + HEADER // 2 - GAP // 2), "; ".join(below), fill=GREY, font=font, anchor="lm")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _left_out(count: int, what: str) -> list[str]:
    return [f"{count:,} more {what}{'s' if count > 1 else ''} left out"] if count else []


def _open(file: Path) -> Image.Image:
    return Image.open(file, formats=["PNG", "JPEG", "WEBP"])


_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def _longest(file: Path) -> int:
    """Pixels of the longer side, out of the file's head; 0 where it can't be read."""
    try:
        with _open(file) as image:
            return max(image.size)
    except _UNREADABLE:
        return 0


def _small(file: Path, side: int) -> Image.Image | None:
    """The picture, its longer side `side` pixels; None where it can't be read."""
    try:
        with _open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            return ImageOps.contain(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    except _UNREADABLE:
        return None


def _wrapped(text: str, font: Font, width: int, most: int) -> str:
    """`text` in at most `most` lines of `width` pixels; a longer word is broken, what has no room becomes dots."""
    lines, rest = list[str](), " ".join(text.split())[: 100 * most]
    while rest and len(lines) < most:
        end = len(rest)
        while end > 1 and font.getlength(rest[:end]) > width:
            end -= 1
        if end < len(rest) and (space := rest.rfind(" ", 0, end + 1)) > 0:
            end = space
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        last = lines[-1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines[-1] = last + "..."
    return "\n".join(lines)
