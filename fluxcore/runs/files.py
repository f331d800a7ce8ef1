"""The one place that knows a file name: what lies where in a run's folder (contract, section 2)."""

from __future__ import annotations

import errno
import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fluxcore.config.names import MAX_NAME_LENGTH, NAME_RULE, is_valid_name
from fluxcore.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
SAMPLE_FOLDER = "sample"
PROBE_BYTES = 256 * 1024


class RunError(UserError):
    """A run that is not there, or a request that can't be granted."""


def default_outputs() -> Path:
    """`$FLUXGYM_OUTPUTS`, else `outputs/` at the project's root."""
    return Path(os.environ.get("FLUXGYM_OUTPUTS") or PROJECT_ROOT / "outputs").absolute()


@dataclass(frozen=True)
class RunFolder:
    """A run's folder `outputs/NAME/` and the names of the files in it."""

    path: Path

    @classmethod
    def of(cls, outputs: Path, name: str) -> RunFolder:
        """The folder of run `name`, existing or not. Raises RunError where the name could leave `outputs`."""
        if not is_valid_name(name):
            raise RunError(f"{name!r} is not a run's name: {NAME_RULE}")
        return cls(outputs / name)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def train_log(self) -> Path:
        return self.path / "train.log"

    @property
    def monitor_log(self) -> Path:
        return self.path / "monitor.log"

    @property
    def monitor_pid(self) -> Path:
        return self.path / "monitor.pid"

    @property
    def ui_state(self) -> Path:
        return self.path / "ui_state.json"

    @property
    def dataset(self) -> Path:
        return self.path / "dataset"

    @property
    def samples(self) -> Path:
        return self.path / SAMPLE_FOLDER

    @property
    def cache(self) -> Path:
        """Encoded pictures and captions, for every attempt; what is missing is made anew."""
        return self.path / ".cache"

    @property
    def superseded(self) -> Path:
        """Where checkpoints and samples go that a resume or a restart left behind."""
        return self.path / ".superseded"

    def attempt(self, number: int) -> Path:
        """The shim's records of one attempt (intent, claim, process, exit)."""
        return self.path / ".attempts" / f"{number:04d}"

    def stacks(self, attempt: int) -> Path:
        """Where the trainer of an attempt stood when it was found stuck."""
        return self.attempt(attempt) / "stacks.txt"

    def stack_dumps(self) -> list[tuple[int, Path]]:
        """The attempts of which there are stacks, newest first."""
        found = self.attempt(0).parent.glob("*/stacks.txt")
        return sorted(((int(path.parent.name), path) for path in found if path.parent.name.isdigit()), reverse=True)

    @property
    def alerts_lock(self) -> Path:
        """Held by the process that tells people of this run: never two at a time."""
        return self.path / ".alerts.lock"

    @property
    def final_weights(self) -> Path:
        return self.path / f"{self.name}.safetensors"

    @property
    def final_state(self) -> Path:
        return self.path / f"{self.name}-state"

    def epoch_weights(self, epoch: int) -> Path:
        """The LoRA after `epoch` (from 1), named as sd-scripts names it."""
        return self.path / f"{self.name}-{epoch:06d}.safetensors"

    def epoch_state(self, epoch: int) -> Path:
        """The state after `epoch` (from 1)."""
        return self.path / f"{self.name}-{epoch:06d}-state"

    def step_weights(self, step: int) -> Path:
        """The LoRA after optimizer step `step` (from 1)."""
        return self.path / f"{self.name}-step{step:08d}.safetensors"

    def step_state(self, step: int) -> Path:
        """The state after optimizer step `step` (from 1)."""
        return self.path / f"{self.name}-step{step:08d}-state"

    def sample(self, index: int, seed: int, *, step: int, epoch: int | None = None) -> Path:
        """A sample's path, named as sd-scripts names it: by epoch where one just ended, else by step."""
        moment = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
        when = f"{step:06d}" if epoch is None else f"e{epoch:06d}"
        return self.samples / f"{self.name}_{when}_{index:02d}_{moment}_{seed}.png"

    def relative(self, path: Path) -> str:
        """`path` as an event names it: POSIX, relative to the run's folder."""
        return path.relative_to(self.path).as_posix()

    def inside(self, relative: str) -> Path | None:
        """A path from an event or a browser, resolved; None where it would leave the run's folder."""
        root = self.path.resolve()
        resolved = (root / relative).resolve()
        return resolved if resolved.is_relative_to(root) else None


def entry_names(outputs: Path, *, folders_only: bool = True) -> list[str]:
    """What lies in an outputs folder under a name that a run may have, sorted; with `folders_only` no plain files.

    Names with a leading dot are never runs. Raises RunError where the folder is there but can't be read.
    """
    try:
        with os.scandir(outputs) as entries:
            return sorted(
                entry.name for entry in entries if is_valid_name(entry.name) and (not folders_only or _is_dir(entry))
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunError(f"the outputs folder {outputs} can't be read ({error.strerror}); mend its permissions") from None


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into nowhere
        return False


def has_log(folder: Path) -> bool:
    """Whether a folder holds an event log. One that can't be looked into counts: reading it says what is wrong."""
    try:
        return any(name.startswith("events") and name.endswith(".jsonl") for name in os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def list_run_folders(outputs: Path) -> list[RunFolder]:
    """The runs of an outputs folder by name. Raises RunError where the folder can't be read."""
    return [RunFolder(outputs / name) for name in entry_names(outputs) if has_log(outputs / name)]


def free_run_name(outputs: Path, stem: str) -> str:
    """`stem`, or `stem-2`, `stem-3` … where it is taken, without regard to case; for `cat-2`, where there is a `cat`,
    `cat-3`."""
    taken = {name.lower() for name in entry_names(outputs, folders_only=False)}
    name, count = stem, 1
    numbered = re.fullmatch(r"(.+)-([2-9]|[1-9]\d)", stem)
    if numbered and {stem.lower(), numbered[1].lower()} <= taken:
        stem, count = numbered[1], int(numbered[2])
    while name.lower() in taken:
        count += 1
        ending = f"-{count}"
        name = stem[: MAX_NAME_LENGTH - len(ending)] + ending
    return name


def check_outputs(outputs: Path) -> None:
    """Make the outputs folder and see that a line of a log fits into it. Raises RunError with what to do."""
    probe = outputs / f".probe-{secrets.token_hex(4)}"
    try:
        outputs.mkdir(parents=True, exist_ok=True)
        try:
            with open(probe, "xb") as file:
                file.write(bytes(PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())  # some disks say only then that they are full
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "make room in it, or choose another" if full else "choose another"
        raise RunError(
            f"the outputs folder {outputs} can't be written ({error.strerror}); {what} with --outputs"
        ) from None


def parse_checkpoint_name(run: str, file_name: str) -> tuple[str, int | None, int | None] | None:
    """(`"state"` or `"weights"`, epoch or None, step or None) of a checkpoint of `run`; None for any other file.

    Recognises sd-scripts' names, padded or not: `NAME-000004-state`, `NAME-8-state`, `NAME-step00000120.safetensors`.
    """
    if not file_name.startswith(run):
        return None
    match = re.fullmatch(r"(?:-(?:step(\d+)|(\d+)))?(-state|\.safetensors)", file_name[len(run) :])
    if match is None:
        return None
    step, epoch, kind = match.groups()
    return "state" if kind == "-state" else "weights", int(epoch) if epoch else None, int(step) if step else None
