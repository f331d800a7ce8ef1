"""Trainings of flux-mini in the test's own process: no start-up, and the loop can be looked into."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

from fluxcore.config import RunConfig, parse_saved, resolve_config
from fluxcore.log import Event, EventLog, PatientLog, read_events
from fluxcore.runs import RunFolder, create_run, load_run
from fluxcore.runs.checkpoints import set_aside
from fluxcore.training.failures import Exit
from fluxcore.training.train import Training

torch.set_num_threads(1)  # two waste each other's time on a machine that does other things as well

RISO = Path(__file__).resolve().parents[1] / "examples" / "riso"


def some_pictures(target: Path, count: int = 6) -> Path:
    """The example's first pictures with their captions."""
    target.mkdir(parents=True, exist_ok=True)
    for image in sorted(RISO.glob("*.png"))[:count]:
        shutil.copy(image, target)
        shutil.copy(image.with_suffix(".txt"), target)
    return target


def new_run(outputs: Path, name: str, dataset: Callable[[Path], object], **settings: object) -> RunFolder:
    """A run of four steps of two pictures, not started; `dataset` fills its folder."""
    few = {"max_train_steps": 4, "train_batch_size": 2, "save_every_n_epochs": 0, "concept_sentence": "r1so"}
    config = resolve_config({"lora_name": name, **few, **settings})
    return create_run(outputs, config, "cli", dataset)


def config_of(folder: RunFolder) -> RunConfig:
    return parse_saved(load_run(folder.path.parent, folder.name)[1].config)


def train_here(
    folder: RunFolder,
    *,
    attempt: int = 1,
    resume_from: Path | None = None,
    stop_after: int | None = None,
    wish: tuple[int, str] | None = None,
) -> Training:
    """One attempt, to its end or until TERM after that step; as `python -m fluxcore.training` does it.

    `wish`: the step after which a person asks for "sample" or "save".
    """
    log = PatientLog(EventLog(folder.path, "trainer", attempt=attempt))
    state = load_run(folder.path.parent, folder.name)[1]
    step = 0 if resume_from is None else int(resume_from.name.removesuffix("-state").rsplit("step", 1)[-1])

    def stopping() -> bool:
        return stop_after is not None and stop_after in steps_of(folder)

    def wishes() -> set[str]:
        return {wish[1]} if wish and steps_of(folder)[-1] == wish[0] else set()

    make_way = lambda: set_aside(folder, step, state)
    training = Training(folder, config_of(folder), log, resume_from, stopping, wishes, make_way=make_way)
    try:
        ended = training.run()
    finally:
        log.drain(10)
    assert ended == (Exit.DONE if stop_after is None else Exit.STOPPED)
    return training


def events_of(folder: RunFolder, type: str) -> list[Event]:
    return [event for event in read_events(folder.path) if event.type == type]


def steps_of(folder: RunFolder) -> list[int]:
    return [event.data["step"] for event in events_of(folder, "train.step")]


def losses_of(folder: RunFolder) -> dict[int, float]:
    """The last attempt's loss of each step."""
    return {event.data["step"]: event.data["loss"] for event in events_of(folder, "train.step")}


def lora_of(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.final_weights)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same to the bit."""
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def trained(tensors: dict[str, torch.Tensor], parts: Iterable[str] = ("up",)) -> bool:
    """Whether anything that starts at zero no longer is."""
    return any(value.abs().max() > 0 for name, value in tensors.items() if any(part in name for part in parts))
