"""Being woken when a log changes. A hint, never the truth: where it fails, the loop's slow poll goes on alone."""

from __future__ import annotations

import logging
import os
import queue
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class Wake:
    """Names of runs whose files changed since last asked, and a way to sleep until there are some."""

    def __init__(self, outputs: Path) -> None:
        self._prefix = str(outputs) + os.sep
        self._outputs = outputs
        self._known: Collection[str] = ()
        # A SimpleQueue's put may be called from a signal's handler; a lock may not.
        self._names: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._observer: Any = None

    @property
    def works(self) -> bool:
        """Whether changes are seen as they happen; otherwise only polling finds them."""
        return self._observer is not None and self._observer.is_alive()

    def start(self) -> None:
        """Begin to listen. Never raises: inotify's limits (watches, instances) are often low on shared machines."""
        try:
            from watchdog.events import (
                DirCreatedEvent,
                DirMovedEvent,
                FileClosedEvent,
                FileCreatedEvent,
                FileModifiedEvent,
                FileMovedEvent,
                FileSystemEvent,
            )
            from watchdog.observers import Observer

            # Who asks for something closes the log behind it. A trainer keeps it open: its steps, which wake nobody,
            # would take more than half of all the time that this program needs.
            changed = FileClosedEvent if sys.platform == "linux" else FileModifiedEvent
            kinds: list[type[FileSystemEvent]] = [FileCreatedEvent, changed, FileMovedEvent]
            kinds += [DirCreatedEvent, DirMovedEvent]
            observer = Observer()
            observer.schedule(_handler(self.hint), str(self._outputs), recursive=True, event_filter=kinds)
            observer.daemon = True
            observer.start()
            self._observer = observer
        except Exception as error:
            log.warning("changes can't be watched (%s); polling instead", error)

    def stop(self) -> None:
        """Stop listening."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(2.0)
            self._observer = None

    def hint(self, path: str) -> None:
        """A file or folder changed."""
        if not path.startswith(self._prefix):
            return
        name, *more = path[len(self._prefix) :].split(os.sep)
        file = more[-1] if more else name
        if not more and file.startswith(".events") and file.endswith(".jsonl"):
            self.ring()  # the queue was paused or resumed
            return
        relevant = not more or (file.startswith("events") and file.endswith(".jsonl"))
        if name.startswith(".") or name in self._known or not (relevant or file in ("exit.json", "process.json")):
            return
        self._names.put(name)

    def ring(self) -> None:
        """Wake the loop without a name (a signal arrived)."""
        self._names.put("")

    def wait(self, seconds: float, known: Collection[str] = ()) -> set[str]:
        """Sleep until something changed, at most `seconds`; the names of what did. Those `known` wake nobody again."""
        self._known = known
        names: set[str] = set()
        try:
            names.add(self._names.get(timeout=max(0.0, seconds)))
            while True:
                names.add(self._names.get_nowait())
        except queue.Empty:
            return names - {""}
        finally:
            self._known = ()


def _handler(hint: Callable[[str], None]) -> Any:
    from watchdog.events import FileSystemEvent, FileSystemEventHandler

    class Handler(FileSystemEventHandler):
        def dispatch(self, event: FileSystemEvent) -> None:
            for path in (event.src_path, event.dest_path):
                if path:
                    hint(path if isinstance(path, str) else path.decode(errors="surrogateescape"))

    return Handler()
