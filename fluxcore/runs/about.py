"""What a person writes on a run: a title, tags, a note, and whether it is put away. Events like any other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fluxcore.log import Event

from .files import RunError
from .load import load_run
from .requests import append_event

MAX_TITLE = 120
MAX_TAG = 40
MAX_TAGS = 20
MAX_NOTE = 20_000


def set_title(outputs: Path, name: str, source: str, title: str) -> Event:
    """Show the run under `title`; an empty one is its name again. Raises RunError."""
    title = " ".join(title.split())
    if len(title) > MAX_TITLE:
        raise RunError(f"a title has at most {MAX_TITLE} characters")
    return append_event(load_run(outputs, name)[0], source, "run.titled", {"title": title})


def set_tags(outputs: Path, name: str, source: str, tags: Iterable[str]) -> Event:
    """The run's tags, all of them; blanks around them and doubles go. Raises RunError."""
    kept = list(dict.fromkeys(tag for given in tags if (tag := " ".join(given.split()))))
    if len(kept) > MAX_TAGS or any(len(tag) > MAX_TAG for tag in kept):
        raise RunError(f"a run has at most {MAX_TAGS} tags of at most {MAX_TAG} characters each")
    return append_event(load_run(outputs, name)[0], source, "run.tagged", {"tags": kept})


def set_note(outputs: Path, name: str, source: str, note: str) -> Event:
    """The run's note. Raises RunError."""
    if len(note) > MAX_NOTE:
        raise RunError(f"a note has at most {MAX_NOTE:,} characters")
    return append_event(load_run(outputs, name)[0], source, "run.noted", {"note": note.strip()})


def set_archived(outputs: Path, name: str, source: str, archived: bool) -> Event:
    """Put the run out of sight, or back. Raises RunError where it is live."""
    folder, state = load_run(outputs, name)
    if archived and state.is_busy:
        raise RunError(f"{name} is {state.state}; stop it first")
    return append_event(folder, source, "run.archived", {"archived": archived})
