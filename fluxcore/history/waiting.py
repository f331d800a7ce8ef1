"""Rows that go into the store when somebody asks for them: a statement costs as much as a thousand rows."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from fluxcore.log import Event

from .rows import event_rows, insert_events, insert_steps, step_rows

_MOST = 4_000
"""So many are stored without being asked for."""


class WaitingRows:
    """Rows of events and steps in memory, on their way into the store."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._steps: list[pa.Table] = []
        self._events: list[pa.Table] = []
        self._count = 0

    def add(self, run: str, events: list[Event], steps: list[Event]) -> None:
        """Take a run's new events, and those of them that are steps."""
        if steps:
            self._steps.append(step_rows(run, steps))
        self._events.append(event_rows(run, events))
        self._count += len(events)
        if self._count > _MOST:
            self.store()

    def store_steps(self) -> None:
        """Store the steps alone, as a chart asks for them."""
        if self._steps:
            insert_steps(self._connection, pa.concat_tables(self._steps).combine_chunks())
            self._steps.clear()

    def store(self) -> None:
        """Store all of them."""
        self.store_steps()
        if self._events:
            insert_events(self._connection, pa.concat_tables(self._events).combine_chunks())
        self.clear()

    def clear(self) -> None:
        """Forget them."""
        self._steps.clear()
        self._events.clear()
        self._count = 0
