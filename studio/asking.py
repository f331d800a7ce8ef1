"""A statement that runs beside the page: it can be waited for and called off."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fluxcore.errors import UserError
from fluxcore.history import SqlResult, run_sql

if TYPE_CHECKING:
    from fluxcore.history.engine import History


class Asked:
    """One statement, from the moment it is asked."""

    def __init__(self, outputs: Path, sql: str, history: History) -> None:
        self.sql = sql
        self.result: SqlResult | None = None
        self.problem = ""
        self.seconds = 0.0
        self._begun = time.monotonic()
        self._cancel = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(outputs, history), name="sql", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    @property
    def waited(self) -> float:
        """Seconds since it was asked."""
        return time.monotonic() - self._begun

    def cancel(self) -> None:
        """Call it off; the guarded process ends at once."""
        self._cancel.set()

    def wait(self, seconds: float) -> None:
        """Wait for it that long at most."""
        self._thread.join(seconds)

    def _run(self, outputs: Path, history: History) -> None:
        try:
            self.result = run_sql(outputs, self.sql, history=history, cancel=self._cancel)
        except UserError as error:
            self.problem = str(error)
        except Exception as error:  # a page has nobody above it who would say so
            self.problem = f"the statement could not be carried out ({type(error).__name__}: {error})"
        self.seconds = self.waited
