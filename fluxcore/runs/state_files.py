"""`fluxgym_state.json` in a state's folder: whose it is, and what its files were when it was written. No torch.

sd-scripts pass over it, and write none; a state without it is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ABOUT_FILE = "fluxgym_state.json"
DAMAGED_FILE = "fluxgym_damaged.json"
"""What a trainer found wrong in a state that it was to go on from; it holds until that file is put right."""


class StateDamaged(ValueError):
    """A state whose `fluxgym_state.json` can't be read; the message says so."""


@dataclass(frozen=True)
class StateAbout:
    """The run and the base model that a state was trained of and on ("" = not told), its `network`, and its `files`.

    `network`: the settings that decide what its weights add, by their names in a config ({} = not told). Of each file,
    by its path in the folder: bytes, and sha256 in hex.
    """

    run: str = ""
    base_model: str = ""
    network: dict[str, Any] = field(default_factory=dict)
    files: dict[str, tuple[int, str]] = field(default_factory=dict)


def write_about(folder: Path, run: str, base_model: str, network: Mapping[str, Any] | None = None) -> None:
    """Write the file for all that lies in `folder` now: last of all, it vouches for the others."""
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": file_hash(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / ABOUT_FILE
    }
    about = {"run": run, "base_model": base_model, "network": dict(network or {}), "files": files}
    (folder / ABOUT_FILE).write_text(json.dumps(about, indent=1))


def read_about(folder: Path) -> StateAbout:
    """What the folder's file tells; nothing where there is none. Raises StateDamaged."""
    try:
        found = json.loads((folder / ABOUT_FILE).read_text())
        files = {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in found.get("files", {}).items()}
        network = dict(found.get("network", {}))
        return StateAbout(str(found.get("run", "")), str(found.get("base_model", "")), network, files)
    except (FileNotFoundError, NotADirectoryError):
        return StateAbout()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise StateDamaged(f"{ABOUT_FILE} is torn") from None


def size_problem(folder: Path) -> str:
    """Why the files can't be those that were written, by their sizes and by what was found before, or ""."""
    try:
        files = read_about(folder).files
    except StateDamaged as error:
        return str(error)
    for name, (size, _) in files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} bytes instead of {size:,}"
    try:
        known = json.loads((folder / DAMAGED_FILE).read_text())
        if known["at"] == (folder / known["name"]).stat().st_mtime_ns:
            return _not_as_written(known["name"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return ""


def content_problem(folder: Path) -> str:
    """The same by their contents, or "": reads all of them, and keeps in the folder what it finds. Raises OSError."""
    if problem := size_problem(folder):
        return problem
    for name, (_, sha256) in read_about(folder).files.items():
        at = (folder / name).stat().st_mtime_ns
        if file_hash(folder / name) != sha256:
            with suppress(OSError):  # a full disk hides no damage
                (folder / DAMAGED_FILE).write_text(json.dumps({"name": name, "at": at}))
            return _not_as_written(name)
    return ""


def _not_as_written(name: str) -> str:
    return f"{name} is not as it was written"


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
