"""Which of a run's samples count: one for each prompt and step, whose file is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import RunFolder
from .fold import RunState

MOST_STEPS = 12
"""Steps that a grid of samples shows at most."""
Sample = dict[str, Any]
"""What its event says: path, step, index of the prompt, prompt, seed."""


def drawn(folder: RunFolder, state: RunState) -> list[Sample]:
    """Samples whose file is there, in order of steps; where a resume drew a step again, the later attempt's."""
    kept: dict[tuple[int, int], Sample] = {}
    for sample in state.samples:
        if sample_file(folder, sample):  # a restart and a resume move what they leave behind
            kept[step_of(sample), index_of(sample)] = sample
    return [sample for _, sample in sorted(kept.items(), key=lambda item: item[0])]


def sample_file(folder: RunFolder, sample: Sample) -> Path | None:
    """A sample's picture; None where it is not there (any more)."""
    file = folder.inside(str(sample.get("path") or ""))
    return file if file is not None and file.is_file() else None


def step_of(sample: Sample) -> int:
    """After how many steps it was drawn."""
    return int(sample.get("step") or 0)


def index_of(sample: Sample) -> int:
    """Which of the prompts it shows."""
    return int(sample.get("index") or 0)


def by_prompt(found: list[Sample]) -> dict[int, list[Sample]]:
    """The samples of each prompt, in the prompts' order, by the prompt's index."""
    lines: dict[int, list[Sample]] = {}
    for sample in found:
        lines.setdefault(index_of(sample), []).append(sample)
    return dict(sorted(lines.items()))


def spread(steps: list[int]) -> list[int]:
    """At most MOST_STEPS of these steps, evenly spread, the first and the last among them."""
    if len(steps) <= MOST_STEPS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (MOST_STEPS - 1))] for i in range(MOST_STEPS)]
