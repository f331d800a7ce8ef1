"""Which states go when newer ones are there, and what a save that was killed left behind. No torch needed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable

from .checkpoints import CheckpointFile, list_checkpoints
from .files import RunFolder, parse_checkpoint_name

_LEFTOVER = re.compile(r"\.(?P<name>.+?)\.(?:tmp|gone|\d+-[0-9a-f]+\.tmp)")


def doomed_states(
    run: str, states: Iterable[CheckpointFile], keep_epochs: int, keep_steps: int, step: int
) -> list[CheckpointFile]:
    """The states to delete at `step`: epoch states but the newest `keep_epochs`, step states of more than `keep_steps`
    steps ago (0 = none of that kind).

    Only complete states count and go, and the newest of them all stays, whatever its kind: a state that turned out
    torn never costs the one before it.
    """
    complete = sorted((found for found in states if found.complete), key=lambda found: found.step or 0)
    by_epoch, doomed = [], []
    for found in complete:
        _, epoch, at_step = parse_checkpoint_name(run, found.name) or ("", None, None)
        if epoch is not None:
            by_epoch.append(found)
        elif at_step is not None and keep_steps and at_step <= step - keep_steps:
            doomed.append(found)
    doomed += by_epoch[:-keep_epochs] if keep_epochs else []
    return [found for found in doomed if found is not complete[-1]]


def prune_states(folder: RunFolder, keep_epochs: int, keep_steps: int, step: int) -> list[str]:
    """Delete what `doomed_states` says, and return the names. Call it once a newer state is whole and renamed.

    Each goes out of sight by a rename first, so that a kill in between leaves no half state under a state's name.
    """
    states = [found for found in list_checkpoints(folder) if found.kind == "state"]
    doomed = doomed_states(folder.name, states, keep_epochs, keep_steps, step)
    for found in doomed:
        gone = found.path.with_name(f".{found.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(found.path, gone)
        shutil.rmtree(gone, ignore_errors=True)
    return [found.name for found in doomed]


def sweep_leftovers(folder: RunFolder) -> list[str]:
    """Delete what a killed save or prune left under a dot name: each may be as large as a state. Returns the names.

    Call it before an attempt writes, never while one may be saving.
    """
    swept = []
    for name in sorted(os.listdir(folder.path)):
        match = _LEFTOVER.fullmatch(name)
        if match is None or parse_checkpoint_name(folder.name, match["name"]) is None:
            continue
        path = folder.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        swept.append(name)
    return swept
