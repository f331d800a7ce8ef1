"""The history in memory: DuckDB tables fed from the logs by offset. Derived; a new one is built from the logs alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from fluxcore.log import Event, FolderReader, number
from fluxcore.runs import RunState, entry_names, unreadable

from .logs import RunLogs
from .run_row import run_row
from .views import RUN_COLUMNS, STEP_COLUMNS, TABLES, VIEWS

_INT64 = 2**63


class History:
    """The contract's views over one outputs folder. Safe to share between threads."""

    def __init__(self, outputs: Path) -> None:
        """An empty history; `refresh` fills it."""
        self.outputs = outputs
        self.states: dict[str, RunState] = {}
        self.unreadable: dict[str, str] = {}
        """What to tell a person of each run that the last refresh left out."""
        self._logs: dict[str, RunLogs] = {}
        self._lock = threading.RLock()
        self._connection = duckdb.connect(":memory:")
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute(TABLES + VIEWS)

    def refresh(self) -> bool:
        """Take in what came since the last call; runs that are gone leave. True where anything changed."""
        with self._lock:
            gone, fresh, touched = set(self._logs), dict[str, list[Event]](), set[str]()
            self.unreadable = {}
            for name in entry_names(self.outputs):
                logs = self._logs.get(name) or RunLogs(self.outputs / name, FolderReader(self.outputs / name))
                try:
                    now = logs.signature()
                    if not now:
                        continue
                    replaced = name in self._logs and logs.replaced(now)
                    if replaced:
                        logs = RunLogs(logs.folder, FolderReader(logs.folder))
                        now = logs.signature()
                    elif name in self._logs and now == logs.files:
                        gone.discard(name)
                        continue
                    events = logs.read_new(now)
                except OSError as error:
                    # Part of it may have been read: it leaves, and is read from its start once it can be.
                    self.unreadable[name] = str(unreadable(name, error))
                    continue
                gone.discard(name)
                if replaced:
                    touched.add(name)
                    self.states.pop(name, None)
                self._logs[name] = logs
                fresh[name] = events
            for name in gone:
                self._logs.pop(name)
                self.states.pop(name, None)
            self._store(gone | touched, fresh)
            return bool(gone or touched or any(fresh.values()))

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows of one statement as dicts. For FluxGym's own questions: a person's go through `run_sql`."""
        with self._lock:
            result = self._connection.execute(sql, list(parameters))
            names = [column[0] for column in result.description or []]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def table(self, sql: str, parameters: Sequence[Any] = ()) -> pa.Table:
        """The same as an Arrow table, which a chart takes as it is."""
        with self._lock:
            return self._connection.sql(sql, params=list(parameters)).to_arrow_table()

    def save_copy(self, path: Path) -> None:
        """Write all of it, views included, into a DuckDB file of its own at `path`, which must not exist."""
        quoted = str(path).replace("'", "''")
        with self._lock:
            self._connection.execute(f"ATTACH '{quoted}' AS copied")
            try:
                self._connection.execute("COPY FROM DATABASE memory TO copied")
            finally:
                self._connection.execute("DETACH copied")

    def signature(self) -> list[tuple[str, str, int, int, int]]:
        """Run, file, inode, size and time of every log that is in: what a copy is a copy of."""
        with self._lock:
            return log_signature({name: logs.files for name, logs in self._logs.items()})

    def close(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _store(self, removed: set[str], fresh: dict[str, list[Event]]) -> None:
        """Fold and insert, in one transaction."""
        changed = []
        for name, events in fresh.items():
            state = self.states.setdefault(name, RunState(name))
            for event in events:
                state.apply(event)
            changed.append(state)
        if not removed and not changed:
            return
        execute = self._connection.execute
        execute("BEGIN")
        try:
            for table in ("store.event_rows", "store.step_rows"):
                if removed:
                    execute(f"DELETE FROM {table} WHERE list_contains(?, run)", [sorted(removed)])
            stale = sorted(removed | {state.name for state in changed})
            execute("DELETE FROM store.run_rows WHERE list_contains(?, run)", [stale])
            for name, events in fresh.items():
                if events:
                    self._insert(name, events)
            if changed:
                self._insert_runs(changed)
            execute("COMMIT")
        except BaseException:
            execute("ROLLBACK")
            # What was read is neither in nor to be read again: begin anew at the next refresh.
            self._logs.clear()
            self.states.clear()
            execute("DELETE FROM store.event_rows; DELETE FROM store.step_rows; DELETE FROM store.run_rows")
            raise

    def _insert(self, name: str, events: list[Event]) -> None:
        rows = pa.table(
            {
                "ts": pa.array([event.ts for event in events], pa.string()),
                "type": pa.array([event.type for event in events], pa.string()).dictionary_encode(),
                "source": pa.array([event.source for event in events], pa.string()).dictionary_encode(),
                "writer": pa.array([event.writer for event in events], pa.string()).dictionary_encode(),
                "n": pa.array([_integer(event.n) for event in events], pa.int64()),
                "attempt": pa.array([_integer(event.attempt) for event in events], pa.int64()),
                "data": pa.array([_json(event.data) for event in events], pa.string()),
            }
        )
        self._connection.register("fresh_events", rows)
        self._connection.execute(
            "INSERT INTO store.event_rows SELECT ?, TRY_CAST(ts AS TIMESTAMP), type, source, writer, n,"
            " TRY_CAST(attempt AS INTEGER), data FROM fresh_events",
            [name],
        )
        self._connection.unregister("fresh_events")
        steps = [event for event in events if event.type == "train.step"]
        if steps:
            self._insert_steps(name, steps)

    def _insert_steps(self, name: str, steps: list[Event]) -> None:
        columns = {
            column: (
                pa.array([_integer(event.data.get(column)) for event in steps], pa.int64())
                if kind == "BIGINT"
                else pa.array([number(event.data.get(column)) for event in steps], pa.float64(), from_pandas=False)
            )
            for column, kind in STEP_COLUMNS.items()
        }
        columns["attempt"] = pa.array([_integer(event.attempt) for event in steps], pa.int64())
        columns["ts"] = pa.array([event.ts for event in steps], pa.string())
        self._connection.register("fresh_steps", pa.table(columns))
        self._connection.execute(
            "INSERT INTO store.step_rows SELECT ?, TRY_CAST(attempt AS INTEGER), TRY_CAST(ts AS TIMESTAMP),"
            f" {', '.join(STEP_COLUMNS)} FROM fresh_steps",
            [name],
        )
        self._connection.unregister("fresh_steps")

    def _insert_runs(self, states: Iterable[RunState]) -> None:
        values = []
        for state in states:
            row = run_row(state)
            row["config"] = _json(row["config"])
            values.append([_fitting(row[column], kind) for column, kind in RUN_COLUMNS.items()])
        self._connection.executemany(f"INSERT INTO store.run_rows VALUES ({', '.join('?' * len(RUN_COLUMNS))})", values)


def log_signature(logs: dict[str, dict[str, tuple[int, int, int]]]) -> list[tuple[str, str, int, int, int]]:
    """Flat and sorted, so that equal logs give equal signatures."""
    return sorted((run, file, *stat) for run, files in logs.items() for file, stat in files.items())


def current_signature(outputs: Path) -> list[tuple[str, str, int, int, int]]:
    """The signature of an outputs folder's logs as they lie there now, without reading them."""
    found = {}
    for name in entry_names(outputs):
        try:
            files = RunLogs(Path(os.path.join(outputs, name)), FolderReader(outputs / name)).signature()
        except OSError:
            files = {"": (0, 0, 0)}  # like no copy's: as long as a run is left out, every question looks again
        if files:
            found[name] = files
    return log_signature(found)


def _integer(value: Any) -> int | None:
    return value if type(value) is int and -_INT64 <= value < _INT64 else None


def _fitting(value: Any, kind: str) -> Any:
    """One wrong number or name in a log must not stop the history: what doesn't fit its column is NULL."""
    if kind == "BIGINT":
        return _integer(value)
    if kind == "VARCHAR" and not isinstance(value, str):
        return None if value is None else str(value)
    return value


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()  # it came out of a log's JSON: nothing in it is not finite
