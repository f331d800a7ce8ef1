"""What holds for all runs of an outputs folder: the events in `outputs/.events.jsonl`, read and written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxcore.log import Event, EventLog, FolderReader

from .files import RunError, check_outputs
from .load import load_all
from .processes import Identity

if TYPE_CHECKING:
    from .fold import RunState

STEM = ".events"


class Installation:
    """Follows the installation's log. `paused` (with `paused_since` and `reason`): no run is started.

    `known`: whether it could be read once; before that nobody can tell whether the queue is paused.
    """

    def __init__(self, outputs: Path) -> None:
        self._outputs = outputs
        self._file = outputs / f"{STEM}.jsonl"
        self._size = -1
        self._reader: FolderReader | None = None
        self.known = False
        self._forget()

    def _forget(self) -> None:
        self.paused = False
        self.paused_since: str | None = None
        self.reason = ""
        self.defaults: dict[str, Any] = {}
        """What a new draft begins with instead of the schema's defaults."""
        self.shutdown_of: set[tuple[int, int, str]] = set()
        """The runners (pid, start ticks, boot) that are asked to stop all runs and to end."""

    def read(self, *, thorough: bool = True) -> None:
        """Fold in what came. Not `thorough`: only where the main file has grown, which costs next to nothing.

        Raises OSError; then what was said last holds, and the next one begins at the start.
        """
        try:
            size = os.stat(self._file).st_size
        except FileNotFoundError:
            size = -1
        if not thorough and size == self._size:
            return
        self._size = size
        reader, self._reader = self._reader, None  # what a reading that fails had read already is lost with it
        anew = reader is None
        reader = reader or FolderReader(self._outputs, STEM)
        events = reader.read_new()
        if anew:
            self._forget()
        for event in events:
            self._apply(event)
        self._reader, self.known = reader, True

    def _apply(self, event: Event) -> None:
        if event.type == "queue.paused":
            if not self.paused:
                self.paused_since = event.ts
            self.paused, self.reason = True, str(event.data.get("reason") or "")
        elif event.type == "queue.resumed":
            self.paused, self.paused_since, self.reason = False, None, ""
        elif event.type == "defaults.saved" and isinstance(event.data.get("defaults"), dict):
            self.defaults = dict(event.data["defaults"])
        elif event.type == "shutdown.requested" and (runner := Identity.parse(event.data)):
            self.shutdown_of.add((runner.pid, runner.start_ticks, runner.boot_id))


def read_installation(outputs: Path) -> Installation:
    """The installation as its log has it now."""
    found = Installation(outputs)
    found.read()
    return found


def pause_queue(outputs: Path, source: str, reason: str = "") -> Event:
    """Let nothing start until `resume_queue`; running trainings go on. Raises RunError where it can't be written."""
    return _append(outputs, source, "queue.paused", {"reason": reason})


def resume_queue(outputs: Path, source: str, reason: str = "") -> Event:
    """Let waiting runs start again. Raises RunError where it can't be written."""
    return _append(outputs, source, "queue.resumed", {"reason": reason})


def save_defaults(outputs: Path, source: str, defaults: dict[str, Any]) -> Event:
    """Let new drafts begin with these settings. Raises RunError where it can't be written."""
    return _append(outputs, source, "defaults.saved", {"defaults": defaults})


def waiting_in_line(outputs: Path) -> list[RunState]:
    """The queued runs, by their place; those that no runner has given one yet come last."""
    queued = [state for state in load_all(outputs)[0] if state.state == "queued" and state.requests]
    return sorted(queued, key=lambda state: (state.queue_position or len(queued) + 1, state.requests[0].ts))


def request_shutdown(outputs: Path, runner: Identity) -> Event:
    """Ask this runner to stop every run, reason `shutdown`, and to end. Raises RunError where it can't be written."""
    about = {"pid": runner.pid, "start_ticks": runner.start_ticks, "boot_id": runner.boot_id}
    return _append(outputs, "runner", "shutdown.requested", about)


def _append(outputs: Path, source: str, type: str, data: dict[str, Any]) -> Event:
    check_outputs(outputs)
    try:
        with EventLog(outputs, source, run="", stem=STEM) as log:
            return log.append(type, data)
    except OSError as error:
        raise RunError(f"{outputs / '.events.jsonl'} can't be written ({error.strerror}); nothing was asked") from None
