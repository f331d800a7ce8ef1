"""What sd-scripts saves, taken into the run's folder once it is whole, under its true step.

sd-scripts writes into a folder of the attempt's own, for two reasons: nothing there is whole until its last byte, and
after a resume its names count from 0 again, so that they would overwrite those of before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fluxcore.atomic import free_name, sync_folder, sync_tree
from fluxcore.runs import RunFolder
from fluxcore.runs.checkpoints import CheckpointFile, inspect_state, inspect_weights
from fluxcore.runs.files import SAMPLE_FOLDER, parse_checkpoint_name

from .command import Plan

LAST_FILE = "random_states_0.pkl"
_SAMPLE = re.compile(r"_(?P<step>\d{6,})_(?P<index>\d{2,})_(?P<when>\d{14})(?P<seed>_\d+)?\.png")
_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Checkpoint:
    """A state or a LoRA in the run's folder. `sha256` of weights; `step` over all attempts."""

    path: Path
    kind: str
    step: int
    bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class Sample:
    """A picture in the run's folder; `index`: which prompt."""

    path: Path
    step: int
    index: int


class Collector:
    """Takes what lies whole in `output`. `up_to`: the last step, in sd-scripts' count, of which anything may be taken;
    None: all of it.

    What lies there unchanged is not read again: a LoRA may wait for its step's loss for hours where sd-scripts hang in
    their save, and reading it over and over would look like the run's own life to the stall rules.
    """

    def __init__(self, output: Path, folder: RunFolder, plan: Plan) -> None:
        self._output, self._folder, self._plan = output, folder, plan
        self._seen: dict[str, tuple[object, CheckpointFile | None]] = {}

    def checkpoints(self, up_to: int | None) -> Iterator[Checkpoint]:
        """Take states and weights, oldest first."""
        entries = []
        for path in self._output.iterdir() if self._output.is_dir() else ():
            parsed = parse_checkpoint_name(self._folder.name, path.name)
            if parsed is None:
                continue
            found = self._look(path, parsed[0])
            if found is not None and found.step is not None and (up_to is None or found.step <= up_to):
                entries.append((found.step, parsed[0], found))
        for count, kind, found in sorted(entries, key=lambda entry: entry[:2]):
            step = self._plan.first + count
            del self._seen[found.name]
            yield self._take_weights(found, step) if kind == "weights" else self._take_state(found, step)

    def samples(self, up_to: int | None) -> Iterator[Sample]:
        """Take pictures, by step and prompt."""
        folder = self._output / SAMPLE_FOLDER
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            match = _SAMPLE.fullmatch(name.removeprefix(self._folder.name))
            if match is None or (up_to is not None and int(match["step"]) > up_to) or not _is_whole_png(folder / name):
                continue
            step = self._plan.first + int(match["step"])
            path = self._folder.samples / (
                f"{self._folder.name}_{step:06d}_{match['index']}_{match['when']}{match['seed'] or ''}.png"
            )
            path.parent.mkdir(exist_ok=True)
            os.replace(folder / name, path)
            yield Sample(path, step, int(match["index"]))

    def _look(self, path: Path, kind: str) -> CheckpointFile | None:
        """A state or weights file, read where it has changed since the last look; None while it isn't whole."""
        try:
            files = sorted(path.iterdir()) if kind == "state" else [path]
            stats = [(file.name, file.stat()) for file in files]
            mark = [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]
            before = self._seen.get(path.name)
            if before is not None and before[0] == mark:
                return before[1]
            found = inspect_state(path) if kind == "state" else inspect_weights(path, None, None)
            # The directory of a zip file is at its end: nothing comes after it.
            whole = found.complete and (kind == "weights" or zipfile.is_zipfile(path / LAST_FILE))
        except FileNotFoundError:  # deleted meanwhile
            return None
        self._seen[path.name] = mark, found if whole else None
        return found if whole else None

    def _take_state(self, found: CheckpointFile, step: int) -> Checkpoint:
        """Mended where it lies, byte over byte: a full disk has room for that. No one else looks into this folder, and
        a failure here ends the attempt, so that the true count is never taken for sd-scripts' own."""
        state = {"current_epoch": self._plan.epoch(step), "current_step": step}
        with open(found.path / "train_state.json", "r+b") as file:
            file.write(json.dumps(state).encode())
            file.truncate()
        sync_tree(found.path)
        target = self._true_path(found.path.name, step)
        self._put(found.path, target)
        return Checkpoint(target, "state", step, found.bytes)

    def _take_weights(self, found: CheckpointFile, step: int) -> Checkpoint:
        with open(found.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        target = self._true_path(found.path.name, step)
        self._put(found.path, target)
        return Checkpoint(target, "weights", step, found.bytes, digest)

    def _true_path(self, name: str, step: int) -> Path:
        """Where it belongs. An epoch that began in mid-epoch, after a resume, is none: it goes by its step."""
        folder, per_epoch = self._folder, self._plan.per_epoch
        kind, epoch, count = parse_checkpoint_name(folder.name, name) or ("", None, None)
        state = kind == "state"
        if epoch is None and count is None:
            return folder.final_state if state else folder.final_weights
        if epoch is not None and step % per_epoch == 0:
            return (folder.epoch_state if state else folder.epoch_weights)(step // per_epoch)
        return (folder.step_state if state else folder.step_weights)(step)

    def _put(self, path: Path, target: Path) -> None:
        if target.exists():  # a rename onto a folder fails; what lies there is kept
            kept = free_name(self._folder.superseded / target.name)
            kept.parent.mkdir(parents=True, exist_ok=True)
            os.rename(target, kept)
        os.rename(path, target)
        sync_folder(target.parent)


def _is_whole_png(path: Path) -> bool:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_PNG_END)))
        return file.read() == _PNG_END
