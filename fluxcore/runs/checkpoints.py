"""Checkpoints on disk: which are there, which are whole, which one a resume takes. No torch needed."""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxcore.atomic import free_name, sync_folder

from .files import RunFolder, parse_checkpoint_name
from .fold import RunState
from .records import Checkpoint
from .state_files import size_problem


@dataclass(frozen=True)
class CheckpointFile:
    """A state folder or a weights file. `step` is None where nothing tells it; `problem` says why it is incomplete.

    `attempt`: the one that wrote it, by its own word; only FluxGym's states have that.
    """

    path: Path
    kind: str
    step: int | None
    epoch: int | None
    bytes: int
    complete: bool
    problem: str = ""
    attempt: int | None = None

    @property
    def name(self) -> str:
        return self.path.name


def list_checkpoints(folder: RunFolder, state: RunState | None = None) -> list[CheckpointFile]:
    """Every state and weights file of a run, by step; steps of weights come from `state`'s events."""
    found = []
    try:
        entries = sorted(os.listdir(folder.path))
    except FileNotFoundError:
        return []
    for name in entries:
        recorded = state.checkpoints.get(name) if state else None
        parsed = parse_checkpoint_name(folder.name, name)
        if parsed is None and recorded:  # of a renamed or copied run: its files have the old name, as in its log
            parsed = (recorded.kind, recorded.epoch, None)
        if parsed is None:
            continue
        kind, epoch, step = parsed
        path = folder.path / name
        try:
            if kind == "state" and path.is_dir():
                found.append(inspect_state(path, epoch))
            elif kind == "weights" and path.is_file():
                found.append(
                    inspect_weights(path, recorded.step if recorded else step, recorded.epoch if recorded else epoch)
                )
        except FileNotFoundError:
            continue  # the trainer renamed it while we looked
    return sorted(found, key=lambda item: (item.step is None, item.step or 0, item.kind))


def inspect_state(path: Path, epoch: int | None = None) -> CheckpointFile:
    """Look into a state folder, ours or sd-scripts'.

    `train_state.json` is written first and `random_states_0.pkl` last (accelerate's order, not atomic in sd-scripts),
    so a folder with both, and with whole weights and an optimizer between them, is complete; where it has a list of its
    files (state_files.py), all of them have their size as well.
    """
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    step, problem, attempt = None, "", None
    try:
        train_state = json.loads((path / "train_state.json").read_text())
        step = int(train_state["current_step"])
        epoch = int(train_state.get("current_epoch", epoch or 0))
        attempt = int(train_state["attempt"]) if "attempt" in train_state else None
    except (OSError, ValueError, KeyError, TypeError):
        problem = "train_state.json is missing or torn"
    if not problem:
        weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
        problem = "" if weights else "the weights are missing"
        for file in weights:
            if file.suffix == ".safetensors":
                problem = problem or safetensors_problem(file)
    for name in ("optimizer.bin", "random_states_0.pkl"):
        if not problem and not ((path / name).is_file() and (path / name).stat().st_size):
            problem = f"{name} is missing"
    problem = problem or size_problem(path)
    return CheckpointFile(path, "state", step, epoch, size, not problem, problem, attempt)


def inspect_weights(path: Path, step: int | None, epoch: int | None) -> CheckpointFile:
    """Look at a weights file; a `step` that is not known is taken from sd-scripts' `ss_steps` in its metadata."""
    problem = safetensors_problem(path)
    if step is None and not problem:
        metadata = _header(path)[1].get("__metadata__") or {}
        step = int(metadata["ss_steps"]) if str(metadata.get("ss_steps", "")).isdigit() else None
    return CheckpointFile(path, "weights", step, epoch, path.stat().st_size, not problem, problem)


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """The length and the JSON header of a safetensors file. Raises ValueError or struct.error where it is none."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > 100_000_000:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("not a safetensors header")
    return length, header


def safetensors_keys(path: Path) -> list[str]:
    """The names of the tensors in a .safetensors file; none where it is torn."""
    try:
        return [key for key in _header(path)[1] if key != "__metadata__"]
    except (OSError, ValueError, struct.error):
        return []


def safetensors_problem(path: Path) -> str:
    """Why a .safetensors file can't be whole, or "". Looks at the header and the file's length alone."""
    try:
        length, header = _header(path)
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        if path.stat().st_size != 8 + length + max(ends, default=0):
            return f"{path.name} is cut short"
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, struct.error, AttributeError):
        return f"{path.name} is torn"
    return ""


def resume_choice(folder: RunFolder, state: RunState) -> CheckpointFile | None:
    """The checkpoint that `resume` takes: the complete state with the highest step in the newest attempt's lineage.

    The lineage is what that attempt resumed from and what it wrote; a later state of an earlier attempt, which the
    resume went behind, is none of it even while it still lies there.
    """
    best: CheckpointFile | None = None
    for found in list_checkpoints(folder, state):
        if found.kind != "state" or not found.complete or found.step is None:
            continue
        if not _is_left_behind(found, found.step, state) and (best is None or found.step > (best.step or 0)):
            best = found
    return best


def best_weights(folder: RunFolder, state: RunState) -> Checkpoint | None:
    """The LoRA file with the lowest loss on held-out pictures, of those that are still there and whole.

    None where no two of them were measured: then none is better than another.
    """
    measured = [
        saved
        for saved in state.checkpoints.values()
        if saved.kind == "weights" and saved.validation_loss is not None and math.isfinite(saved.validation_loss)
    ]
    there = [saved for saved in measured if (folder.path / saved.path).is_file()]
    if len(there) < 2:
        return None
    in_order = sorted(there, key=lambda saved: (saved.validation_loss, saved.step))
    return next((saved for saved in in_order if _is_whole(folder, saved.path)), None)


def _is_whole(folder: RunFolder, name: str) -> bool:
    path = folder.inside(name)
    try:
        return path is not None and path.is_file() and not safetensors_problem(path)
    except OSError:
        return False


def _is_left_behind(found: CheckpointFile, step: int, state: RunState) -> bool:
    """Whether a state is an earlier attempt's, beyond the step at which the newest one began.

    A writer may die between its rename and its event, or write on a disk that has no room for events: then the state
    itself says whose it is, and where it doesn't the steps decide. An attempt sets aside what lies beyond its start
    before its first step.
    """
    attempt, recorded = state.attempt, state.checkpoints.get(found.name)
    if attempt is None or step <= (attempt.resume_step or 0) or attempt.last_step >= step:
        return False
    writer = found.attempt if recorded is None else recorded.attempt
    if writer is not None:
        return writer < attempt.number
    return any(before.last_step >= step for before in state.attempts[:-1])


def find_state(folder: RunFolder, name: str) -> CheckpointFile | None:
    """The state folder of that name in a run's folder, complete or not; None where there is none."""
    path = folder.inside(name)
    if path is None or path.parent != folder.path.resolve() or not path.is_dir():
        return None
    if not path.name.endswith("-state"):
        return None
    parsed = parse_checkpoint_name(folder.name, path.name)  # None where a renamed run's has the old name
    return inspect_state(folder.path / path.name, parsed[1] if parsed else None)


def set_aside(folder: RunFolder, after_step: int, state: RunState) -> list[str]:
    """Move checkpoints and samples beyond `after_step` into the run's dot folder, so that nothing is overwritten.

    Returns their names. Called before an attempt writes; 0 sets everything aside. Repeating it is harmless.
    """
    samples = {str(sample.get("path")): int(sample.get("step") or 0) for sample in state.samples}
    moves = [found.path for found in list_checkpoints(folder, state) if found.step is None or found.step > after_step]
    if folder.samples.is_dir():
        for file in sorted(folder.samples.iterdir()):
            if samples.get(folder.relative(file), after_step + 1) > after_step:
                moves.append(file)
    for path in moves:
        target = folder.superseded / path.relative_to(folder.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, free_name(target))
    if moves:
        sync_folder(folder.path)
    return [folder.relative(path) for path in moves]
