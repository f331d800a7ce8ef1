"""`./fluxgym bench resume`: flux-mini trained in one go, and killed ten times on the way, to the same LoRA bit by bit.

The real trainer without the runner: each kill is a SIGKILL at a random moment, also in the middle of a save, and what
goes on from there is what `fluxgym resume` would take. With dropout, dropped captions and a schedule, so that whatever
a resume might lose would show in the LoRA.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.campaigns.report import Figure, Progress, none, rate, show
from benchmarks.hangs import tensors
from fluxcore.config import resolve_config
from fluxcore.dataset import copy_dataset
from fluxcore.log import read_events
from fluxcore.runs import RunFolder, create_run, load_run, resume_choice
from fluxcore.runs.files import PROJECT_ROOT

RISO = PROJECT_ROOT / "examples" / "riso"
SAVE_EVERY = 3
MOST_STEPS, MOST_SECONDS = 2 * SAVE_EVERY, 0.2
"""A kill comes so many steps and seconds after an attempt's first step at the latest."""
START_SECONDS = 300.0


@dataclass(frozen=True)
class Trainer:
    """A trainer's process: `wait` for its end and its exit code, `running`, `kill` it (SIGKILL)."""

    wait: Callable[[], int | None]
    running: Callable[[], bool]
    kill: Callable[[], None]


Begin = Callable[[RunFolder, list[str]], Trainer]
"""Starts `python -m fluxcore.training` for a run with further arguments."""


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 1 where the LoRAs differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as place:
        figures = compare(Path(place), asked.kills, random.Random(asked.seed), begin)
    return show(f"kills and resumes in one run of flux-mini, seed {asked.seed}", figures)


def compare(outputs: Path, kills: int, moments: random.Random, begin: Begin) -> list[Figure]:
    """One run to its end at once, one with so many kills, and how they differ."""
    steps = (kills + 2) * 2 * MOST_STEPS  # the last kill comes long before the end
    whole, killed = new_run(outputs, "whole", steps), new_run(outputs, "killed", steps)
    progress = Progress("trainings", kills + 2, every=0)
    end(whole, begin(whole, ["--attempt", "1"]))
    progress.at(1)
    resume: list[str] = []
    resumed_from: list[int] = []
    for attempt in range(1, kills + 1):
        kill_at_random(killed, begin(killed, ["--attempt", str(attempt), *resume]), attempt, moments)
        chosen = resume_choice(killed, load_run(outputs, killed.name)[1])
        resume = ["--resume-from", chosen.name] if chosen else []
        resumed_from.append(chosen.step or 0 if chosen else 0)
        progress.at(attempt + 1)
    end(killed, begin(killed, ["--attempt", str(kills + 1), *resume]))
    progress.at(kills + 2)
    one, other = losses(whole), losses(killed)
    done = [event.data["step"] for event in read_events(killed.path) if event.type == "train.step"]
    same = tensors(whole.final_weights) == tensors(killed.final_weights)
    return [
        rate("SIGKILLs of one training, each gone on from", len(resumed_from), kills, str(kills)),
        Figure("  checkpoints they were gone on from", ", ".join(f"step {step}" for step in resumed_from)),
        Figure("  steps of the training, trained twice", f"{steps}, {len(done) - steps}"),
        none("  steps whose last loss is another one", sum(one.get(n) != other.get(n) for n in range(1, steps + 1))),
        Figure("final LoRA beside the uninterrupted one", "the same to the bit" if same else "differs", "same", same),
    ]


def new_run(outputs: Path, name: str, steps: int) -> RunFolder:
    """A run of flux-mini over the example's pictures, not started."""
    settings = {"base_model": "flux-mini", "concept_sentence": "r1so", "max_train_steps": steps, "train_batch_size": 2}
    settings |= {"save_every_n_epochs": 0, "save_every_n_steps": SAVE_EVERY, "network_dim": 4}
    settings |= {"network_dropout": 0.1, "caption_dropout_rate": 0.2, "lr_scheduler": "cosine", "ema_decay": 0.9}
    config = resolve_config({"lora_name": name, **settings})
    return create_run(outputs, config, "cli", lambda dataset: copy_dataset(RISO, dataset))


def begin(folder: RunFolder, arguments: list[str]) -> Trainer:
    """A trainer as the runner starts it, by itself."""
    command = [sys.executable, "-m", "fluxcore.training", "--outputs", str(folder.path.parent), "--run", folder.name]
    with open(folder.train_log, "ab") as log:
        process = subprocess.Popen([*command, *arguments], cwd=PROJECT_ROOT, stdout=log, stderr=log)
    return Trainer(process.wait, lambda: process.poll() is None, process.kill)


def kill_at_random(folder: RunFolder, trainer: Trainer, attempt: int, moments: random.Random) -> None:
    """Kill an attempt some steps after its first, at any moment of a step or a save. Raises SystemExit."""
    steps, seconds = moments.randint(1, MOST_STEPS), moments.uniform(0, MOST_SECONDS)
    steps += SAVE_EVERY if attempt == 1 else 0  # so that there is a state to go on from
    latest = time.monotonic() + START_SECONDS
    while sum(e.type == "train.step" and e.attempt == attempt for e in read_events(folder.path)) < steps:
        if not trainer.running() or time.monotonic() > latest:
            trainer.kill()
            raise SystemExit(f"attempt {attempt} made no {steps} steps:\n{folder.train_log.read_text()[-2000:]}")
        time.sleep(0.02)
    time.sleep(seconds)
    trainer.kill()
    if trainer.wait() == 0:
        raise SystemExit(f"attempt {attempt} was done before its kill")


def end(folder: RunFolder, trainer: Trainer) -> None:
    """Wait for the training's end. Raises SystemExit where it fails."""
    if code := trainer.wait():
        raise SystemExit(f"{folder.name} ended with {code}:\n{folder.train_log.read_text()[-2000:]}")


def losses(folder: RunFolder) -> dict[int, float]:
    """Each step's loss; of one that was trained twice the last."""
    return {e.data["step"]: e.data["loss"] for e in read_events(folder.path) if e.type == "train.step"}


if __name__ == "__main__":
    sys.exit(main())
