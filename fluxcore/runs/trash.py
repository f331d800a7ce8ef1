"""Deleting runs and checkpoints: never what lives, a run first out of sight and only later for good.

A deleted run lies in `outputs/.trash/ID/NAME` until somebody empties the trash; `restore_run` brings it back.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fluxcore.atomic import sync_folder
from fluxcore.config.names import is_valid_name

from .checkpoints import CheckpointFile, list_checkpoints
from .files import RunError, RunFolder, entry_names
from .fold import RunState
from .load import load_run

TRASH = ".trash"
KEEP_SECONDS = 24 * 3600.0
_ID = re.compile(r"([0-9a-f]{8,})-[0-9a-f]{6}")


@dataclass(frozen=True)
class Deleted:
    """A run in the trash. `id` names it; `at`: when it went there, in epoch seconds."""

    id: str
    name: str
    at: float


def refuse_live(state: RunState) -> None:
    """Raise RunError where something of the run lives or waits."""
    if state.is_busy:
        what = "is being ended; try again in a moment" if state.must_be_killed else f"is {state.state}; stop it first"
        raise RunError(f"{state.name} {what}")


def trash_run(outputs: Path, name: str) -> Deleted:
    """Take a run out of sight, with all that is in it. Raises RunError where it lives or can't be moved."""
    folder, state = load_run(outputs, name)
    refuse_live(state)
    now = time.time()
    found = Deleted(f"{int(now):08x}-{secrets.token_hex(3)}", name, now)
    place = outputs / TRASH / found.id
    try:
        place.mkdir(parents=True)
        os.rename(folder.path, place / name)
        sync_folder(outputs)
    except OSError as error:
        with contextlib.suppress(OSError):
            place.rmdir()
        raise RunError(f"{name} can't be deleted ({error.strerror}); mend the permissions of {outputs}") from None
    return found


def restore_run(outputs: Path, id: str) -> str:
    """Bring a run back from the trash; its name. Raises RunError: it is gone, or its name is taken meanwhile."""
    found = next((deleted for deleted in list_trash(outputs) if deleted.id == id), None)
    if found is None:
        raise RunError("that run is no longer in the trash")
    if any(taken.lower() == found.name.lower() for taken in entry_names(outputs, folders_only=False)):
        raise RunError(f"there is another run {found.name!r} now; delete that one first")
    try:
        os.rename(outputs / TRASH / id / found.name, outputs / found.name)
        (outputs / TRASH / id).rmdir()
        sync_folder(outputs)
    except OSError as error:
        raise RunError(f"{found.name} can't be brought back ({error.strerror})") from None
    return found.name


def list_trash(outputs: Path) -> list[Deleted]:
    """The runs in the trash, the one deleted last first."""
    found = []
    try:
        for entry in os.scandir(outputs / TRASH):
            if match := _ID.fullmatch(entry.name):
                found += [
                    Deleted(entry.name, name, float(int(match[1], 16)))
                    for name in os.listdir(entry.path)
                    if is_valid_name(name)
                ]
    except OSError:
        pass  # there is no trash
    return sorted(found, key=lambda deleted: deleted.at, reverse=True)


def empty_trash(outputs: Path, *, older_than: float = 0.0, only: Iterable[str] | None = None) -> int:
    """Remove for good what was deleted more than `older_than` seconds ago (of `only` those ids); how many runs."""
    old = [deleted for deleted in list_trash(outputs) if time.time() - deleted.at >= older_than]
    if only is not None:
        wanted = set(only)
        old = [deleted for deleted in old if deleted.id in wanted]
    for deleted in old:
        shutil.rmtree(outputs / TRASH / deleted.id, ignore_errors=True)
    return len(old)


def delete_checkpoint(outputs: Path, name: str, file: str) -> CheckpointFile:
    """Remove a state folder or a LoRA file of a run for good. Raises RunError: it lives, or there is no such one."""
    folder, state = load_run(outputs, name)
    refuse_live(state)
    found = next((item for item in list_checkpoints(folder, state) if item.name == file), None)
    if found is None:
        raise RunError(f"{name} has no checkpoint {file!r}")
    aside = folder.path / f".deleted-{secrets.token_hex(6)}"
    try:
        os.rename(found.path, aside)  # whole or absent, also where the removal is broken off
        sync_folder(folder.path)
    except OSError as error:
        raise RunError(f"{file} can't be deleted ({error.strerror})") from None
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink(missing_ok=True)
    return found


def size_of(folder: RunFolder) -> int:
    """Bytes of all files in a run's folder."""
    return sum(os.lstat(os.path.join(root, file)).st_size for root, _, files in os.walk(folder.path) for file in files)
