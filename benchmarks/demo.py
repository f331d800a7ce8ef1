"""`./fluxgym bench demo`: how long the demo takes, and whether its LoRA does what it should.

Trains the demo in a temporary outputs folder (or looks at a finished run with --outputs and --run), then draws the
held-out subjects with and without the LoRA, same seeds, and prints

- seconds from request to run.completed, and of training alone;
- how near the pixels are to the style's colours (those in examples/riso), against the base;
- the share of pictures nearest to their own subject, among all of flux-mini's subjects in that style.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fluxcore.log import Event, read_events
from fluxcore.models.family import family_of
from fluxcore.models.loading import locate
from fluxcore.models.mini.emoji import LUMA, Emoji, load_emoji
from fluxcore.models.mini.evaluate import blurred
from fluxcore.models.mini.riso import HELD_OUT, TRIGGER, colours_of, in_style, palette_distance
from fluxcore.models.registry import find_model
from fluxcore.runs import RunFolder, seconds_between
from fluxcore.runs.files import PROJECT_ROOT
from fluxcore.training.prompts import SamplePrompt
from fluxcore.training.sheet import before_and_after

RISO = PROJECT_ROOT / "examples" / "riso"
SEED = 100


def main() -> int:
    """The command. Returns the demo's own exit code where it fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=Path)
    parser.add_argument("--run", default="demo")
    arguments = parser.parse_args()
    emoji = load_emoji()
    if arguments.outputs:
        return report(RunFolder.of(arguments.outputs.absolute(), arguments.run), emoji)
    with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as outputs:
        command = [sys.executable, "-m", "fluxcore", "demo", "--outputs", outputs]
        trained = subprocess.run(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL)
        if trained.returncode:
            return trained.returncode
        return report(RunFolder.of(Path(outputs), "demo"), emoji)


def report(folder: RunFolder, emoji: Emoji) -> int:
    """Print the figures of a finished run; `emoji`: what its subjects look like."""
    events = read_events(folder.path)
    first = _first(events, "run.requested")
    whole = seconds_between(first.ts, _first(events, "run.completed").ts)
    steps = [event for event in events if event.type == "train.step"]
    training = seconds_between(steps[0].ts, steps[-1].ts)
    print(f"request to run.completed: {whole:.1f} s (at most 150)")
    print(f"training, first to last step: {training:.1f} s for {len(steps)} steps (at most 90)")

    model = find_model("flux-mini")
    prompts = [SamplePrompt(f"{TRIGGER}, {subject}", seed=SEED + i) for i, subject in enumerate(HELD_OUT)]
    base, lora = before_and_after(
        family_of(model), locate(model), folder.final_weights, prompts, model.tokens, 64, SEED
    )
    palette = colours_of(RISO)
    before, after = palette_distance(_tensor(base), palette), palette_distance(_tensor(lora), palette)
    print(f"distance from the style's colours: base {before:.1f}, LoRA {after:.1f}: {after / before:.0%} (at most 40%)")

    own = torch.tensor([emoji.captions.index(subject) for subject in HELD_OUT])
    styled = in_style(emoji.on_white())
    nearest = torch.cdist(blurred(_luma(_tensor(lora))), blurred(_luma(styled))).argmin(1)
    print(
        f"held-out subjects nearest to their own among {len(styled)}: {(nearest == own).float().mean():.0%} of "
        f"{len(own)} (at least 85%); chance {1 / len(styled):.2%}"
    )
    for index in torch.nonzero(nearest != own).flatten().tolist():
        print(f"  {HELD_OUT[index]} looks like {emoji.captions[nearest[index]]}")
    return 0


def _first(events: list[Event], type: str) -> Event:
    return next(event for event in events if event.type == type)


def _tensor(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.asarray(p, dtype=np.float32) / 255).permute(2, 0, 1) for p in pictures])


def _luma(pictures: torch.Tensor) -> torch.Tensor:
    return torch.einsum("nchw,c->nhw", pictures, LUMA)[:, None]


if __name__ == "__main__":
    sys.exit(main())
