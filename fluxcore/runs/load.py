"""Reading runs: one of them, or all of an outputs folder, where one that can't be read must not hide the others."""

from __future__ import annotations

from pathlib import Path

from fluxcore.log import FolderReader

from .files import RunError, RunFolder, has_log, list_run_folders
from .fold import RunState, fold


def find_run(outputs: Path, name: str) -> RunFolder:
    """A run's folder. Raises RunError where there is no such run."""
    folder = RunFolder.of(outputs, name)
    if not has_log(folder.path):
        known = [other.name for other in list_run_folders(outputs)]
        near = [other for other in known if other.lower() == name.lower()]
        raise RunError(f"there is no run {name!r} in {outputs}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return folder


def load_run(outputs: Path, name: str) -> tuple[RunFolder, RunState]:
    """A run's folder and its state. Raises RunError where there is no such run, or its log can't be read."""
    folder = find_run(outputs, name)
    return folder, _read(folder)


def load_all(outputs: Path) -> tuple[list[RunState], list[RunError]]:
    """Every run's state by name, and a sentence for each run whose log can't be read."""
    states, problems = [], []
    for folder in list_run_folders(outputs):
        try:
            states.append(_read(folder))
        except RunError as error:
            problems.append(error)
    return states, problems


def unreadable(name: str, error: OSError) -> RunError:
    """What a person is told of a run whose log can't be read."""
    return RunError(f"the log of {name} can't be read ({error.strerror or error}); mend it or move its folder away")


def _read(folder: RunFolder) -> RunState:
    try:
        reader = FolderReader(folder.path)
        state = fold(folder.name, reader.read_new())
        state.bad_lines = reader.bad_lines
        return state
    except OSError as error:
        raise unreadable(folder.name, error) from None
