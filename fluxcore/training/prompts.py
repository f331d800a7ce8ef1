"""sd-scripts' sample prompts: one a line, with flags behind."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fluxcore.models.registry import DEFAULT_SAMPLE_STEPS


@dataclass(frozen=True)
class SamplePrompt:
    """One line of `sample_prompts`. Sizes in pixels, None = the training's; seed None = the run's."""

    text: str
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    steps: int = DEFAULT_SAMPLE_STEPS
    scale: float = 1.0
    guidance: float = 3.5
    negative: str = ""


_FLAG = re.compile(r"\s--([whdslgn])(?:\s+|$)")
_LIMITS = {"w": (16, 4096), "h": (16, 4096), "d": (0, 2**32 - 1), "s": (1, 1000), "l": (0, 100), "g": (0, 100)}


def parse_prompts(lines: str, default_steps: int = DEFAULT_SAMPLE_STEPS) -> list[SamplePrompt]:
    """The prompts of a config; blank lines and lines that start with # are skipped.

    --w --h width, height; --d seed; --s steps (without it `default_steps`, the base model's); --l classifier-free
    guidance scale (1 = off); --g the guidance given to the model; --n negative prompt. Raises ValueError with the line
    and what is wrong with it.
    """
    stripped = (line.strip() for line in lines.splitlines())
    return [parse_prompt(line, default_steps) for line in stripped if line and not line.startswith("#")]


def parse_prompt(line: str, default_steps: int = DEFAULT_SAMPLE_STEPS) -> SamplePrompt:
    """One line; see parse_prompts."""
    parts = _FLAG.split(" " + line)
    values: dict[str, str] = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
    numbers: dict[str, float] = {}
    for flag, text in values.items():
        if flag == "n":
            continue
        low, high = _LIMITS[flag]
        try:
            number = float(text) if flag in "lg" else int(text)
        except ValueError:
            raise ValueError(f"the sample prompt {line!r} has --{flag} {text!r}, which is not a number") from None
        if not low <= number <= high:
            raise ValueError(f"the sample prompt {line!r} has --{flag} {text}; it must be from {low} to {high}")
        numbers[flag] = number

    def whole(flag: str) -> int | None:
        return int(numbers[flag]) if flag in numbers else None

    return SamplePrompt(
        text=parts[0].strip(),
        width=whole("w"),
        height=whole("h"),
        seed=whole("d"),
        steps=whole("s") or default_steps,
        scale=numbers.get("l", 1.0),
        guidance=numbers.get("g", 3.5),
        negative=values.get("n", ""),
    )
