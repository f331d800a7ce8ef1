"""The history in memory: DuckDB tables fed from the logs by offset. Derived; a new one is built from the logs alone."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from fluxcore.log import Event, whole_number
from fluxcore.runs import ENDED_STATES, RunError, RunState, entry_names, load_run, unreadable

from . import bulk, compaction
from .batch import Piece
from .charts import Curves
from .loaders import Loaders
from .logs import Files, RunLogs, Signature, log_signature
from .rows import insert_runs
from .run_row import run_row
from .views import TABLES, VIEWS, sources
from .waiting import WaitingRows

_REFOLD_SHARE = 100
"""A run whose events come out of order is folded anew, for at most the hundredth part of the time."""
BULK_BYTES = 1024 * 1024
"""From so much new on it is read natively; less is decoded line by line, which starts sooner."""
_TABLES = ("store.event_rows", "store.step_rows", "store.run_rows")
_MEMORY = "200MB"
_ROW_GROUP = 20_480
"""Rows of a Parquet file that are compressed, and skipped, together."""


class History:
    """The contract's views over one outputs folder. Safe to share between threads."""

    def __init__(self, outputs: Path) -> None:
        """An empty history; `refresh` fills it."""
        self.outputs = outputs
        self.rows: dict[str, dict[str, Any]] = {}
        """Each run's row of the `runs` view, and whether it is `archived`."""
        self.versions: dict[str, int] = {}
        """A number for each run that is another one whenever its row or its state is: so a reader sees what changed."""
        self._changes = 0
        self.unreadable: dict[str, str] = {}
        """What to tell a person of each run that the last refresh left out."""
        self.compacted: set[str] = set()
        """The runs that are not read from their logs but from the merged Parquet."""
        self.curves = Curves()
        self._states: dict[str, RunState] = {}
        self._logs: dict[str, RunLogs] = {}
        self._index: compaction.Index | None = None
        self._index_stat: tuple[int, int] | None = None
        self._uncompressed = 0
        self._disordered: set[str] = set()
        """Runs with files of several writers of which one came late: its events belong among what was folded before."""
        self._refold_at: dict[str, float] = {}
        self._lock = threading.RLock()
        self.copying = threading.Lock()
        """For whoever makes a copy for others too: one at a time."""
        self._connection = connect()
        self._connection.execute(TABLES + sources() + VIEWS)
        self._connection.execute("CREATE TABLE store.compacted (run VARCHAR)")
        self._loaders = Loaders(self._connection)
        self._waiting = WaitingRows(self._connection)
        self._waiting_runs: set[str] = set()
        """The runs whose row in the store is not the one in `rows`."""

    def refresh(self) -> bool:
        """Take in what came since the last call; runs that are gone leave. True where anything changed."""
        with self._lock:
            try:
                return self._refresh()
            except BaseException:
                # What was read is neither in nor to be read again: begin anew at the next refresh.
                self._logs.clear()
                self._states.clear()
                self.rows.clear()
                self.versions.clear()
                self.compacted.clear()
                self.curves.clear()
                self._waiting.clear()
                self._waiting_runs.clear()
                self._disordered.clear()
                self._index_stat = None
                self._loaders.clear()
                self._connection.execute("".join(f"DELETE FROM {table};" for table in _TABLES))
                raise

    def state(self, name: str) -> RunState | None:
        """A run's state as of the last refresh; None where there is no such run. A compacted run's log is read."""
        with self._lock:
            if name in self.compacted and name not in self._states:
                try:
                    self._states[name] = load_run(self.outputs, name)[1]
                except RunError:
                    return None
            return self._states.get(name)

    def is_finished(self, name: str) -> bool:
        """Whether nothing more is to be expected in a run's log unless a person asks for it."""
        state = self._states.get(name)
        return state is not None and state.state in ENDED_STATES and not state.is_busy

    def uncompacted(self) -> list[str]:
        """The finished runs that the merged Parquet does not have as they are now."""
        merged = self._index.runs if self._index else {}
        loose = [name for name in self.rows if name not in self.compacted and self.is_finished(name)]
        return [name for name in loose if name not in merged or not merged[name].is_of(self._logs[name].files)]

    def bad_lines(self, name: str) -> int:
        """How many lines of a run's log did not parse."""
        return self._logs[name].reader.bad_lines if name in self._logs else 0

    def files(self, name: str) -> Files:
        """What a run's log files looked like when they were read."""
        return self._logs[name].files

    def query(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """Rows of one statement as dicts. For FluxGym's own questions: a person's go through `run_sql`."""
        with self.ready():
            result = self._connection.execute(sql, parameters)
            names = [column[0] for column in result.description or []]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def table(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> pa.Table:
        """The same as an Arrow table, which a chart takes as it is."""
        with self.ready():
            return self._connection.sql(sql, params=parameters).to_arrow_table()

    def save_copy(self, path: Path) -> tuple[Signature, list[str]]:
        """Write all of it, views included, into a DuckDB file of its own at `path`, which must not exist.

        As it is now; it goes on changing meanwhile, since a million rows take a second or two and pages wait for none.
        Returns the logs that are in it, and what to tell a person of each run that is not. Raises duckdb.Error.
        """
        copy, name = self._connection.cursor(), f"copy_{secrets.token_hex(4)}"
        try:
            copy.execute(f"SET TimeZone = 'UTC'; ATTACH {_quoted(path)} AS {name}")
            copy.execute(f"USE {name}; {TABLES} {sources()} {VIEWS} USE history")
            with self.ready():
                copy.execute("BEGIN")
                copy.execute("SELECT count(*) FROM store.run_rows").fetchall()  # from here on it sees this moment
                about = self.signature(), list(self.unreadable.values())
            self._copy_rows(copy, name)
            copy.execute("COMMIT")
            # Only now are the rows in the file: a disk that is full says so here.
            copy.execute(f"CHECKPOINT {name}; USE history; DETACH {name}")
            return about
        except BaseException:
            for statement in ("ROLLBACK", "USE history", f"DETACH {name}"):
                with contextlib.suppress(duckdb.Error):
                    copy.execute(statement)
            raise
        finally:
            copy.close()

    @staticmethod
    def _copy_rows(copy: duckdb.DuckDBPyConnection, name: str) -> None:
        for table, source in zip(_TABLES, ("store.all_events", "store.all_steps", "store.run_rows"), strict=True):
            copy.execute(f"INSERT INTO {name}.{table} SELECT * FROM {source}").fetchall()

    def save_parquet(self, folder: Path, names: list[str]) -> None:
        """Write the events and steps of those runs as `events.parquet` and `steps.parquet`.

        In the order in which they were read, which is by run for all but those that were live at a time: sorting a
        million events would take more memory than the history has, and a run is found by its row groups either way.
        """
        with self.ready():
            for name in ("events", "steps"):
                self._connection.execute(
                    f"COPY (SELECT * FROM store.all_{name} WHERE list_contains($names, run))"
                    f" TO {_quoted(folder / f'{name}.parquet')}"
                    f" (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP})",
                    {"names": names},
                ).fetchall()

    def signature(self) -> Signature:
        """Run, file, inode, size and time of every log that is in: what a copy is a copy of."""
        with self._lock:
            return log_signature({name: logs.files for name, logs in self._logs.items()})

    def close(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._loaders.close()
            self._connection.close()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """The lock alone: as long as it is held, nothing is read."""
        with self._lock:
            yield

    @contextmanager
    def ready(self, *, steps_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """The lock, and with it the database with every row in it; with `steps_only` those of events and runs may wait.

        The merged Parquet is there: somebody may have cleared `.history` away.
        """
        with self._lock:
            if self.compacted and self._index and not self._index.folder.is_dir():
                self._index_stat = None
                self.refresh()
            if steps_only:
                self._waiting.store_steps()
            else:
                self._store_waiting()
            yield self._connection

    def _refresh(self) -> bool:
        self.unreadable = {}
        started = time.monotonic()
        gone, changed = set(self._logs), list[tuple[str, Files]]()
        index_is_new = self._read_index()
        listed = list[str]()
        for name in entry_names(self.outputs):
            logs = self._logs.get(name) or RunLogs.of(self.outputs / name)
            try:
                now = logs.signature()
                if not now:
                    continue
                known = self._index.runs.get(name) if self._index else None
                if known and (name not in self._logs or name in self.compacted) and known.is_of(now):
                    gone.discard(name)
                    if name not in self.compacted or index_is_new:
                        logs.files = now
                        self._logs[name] = logs
                        listed.append(name)
                    continue
                due = name in self._disordered and started >= self._refold_at.get(name, 0.0)
                if name in self._logs and name not in self.compacted and not logs.replaced(now) and not due:
                    gone.discard(name)
                    if now != logs.files:
                        changed.append((name, now))
                    continue
                # It is new, or another than it was: from its start.
                changed.append((name, now))
            except OSError as error:
                self.unreadable[name] = str(unreadable(name, error))
        anew = {name for name, _ in changed} & gone
        refolded = self._disordered & anew
        self._forget(gone)
        self._list_compacted(listed, bool(gone) or index_is_new)
        events = self._read(changed)
        for name in refolded:
            self._refold_at[name] = time.monotonic() + _REFOLD_SHARE * (time.monotonic() - started)
        if any(self._refold_at.get(name, 0.0) <= started for name in self._disordered):
            return self._refresh() or True
        if not gone and not listed and not changed and self._uncompressed > BULK_BYTES:
            # Nothing to do: time to make what was read in bulk smaller, unless somebody is copying it.
            with contextlib.suppress(duckdb.TransactionException):
                self._connection.execute("CHECKPOINT history")
                self._uncompressed = 0
        return bool(gone or anew or listed or events)

    def _read_index(self) -> bool:
        """Look whether there is a new merged Parquet; True where there is."""
        try:
            status = os.stat(compaction.index_path(self.outputs))
            found = (status.st_ino, status.st_mtime_ns)
        except OSError:
            found = None
        if found is not None and found == self._index_stat or found is None and self._index is None:
            return False
        self._index_stat = found
        self._index = compaction.read_index(self.outputs)
        try:
            self._connection.execute(sources(self._index.folder if self._index else None))
        except duckdb.Error:  # damaged: the logs have all of it
            self._index = None
            self._connection.execute(sources())
        return True

    def _list_compacted(self, names: list[str], refill: bool) -> None:
        """Take in the rows of runs that the merged Parquet holds."""
        if self._index and names:
            rows = {name: self._index.runs[name].row for name in names}
            self._replace_rows(rows)
            self.compacted |= set(names)
        if names or refill:
            self._connection.execute("DELETE FROM store.compacted")
            table = pa.table({"run": pa.array(sorted(self.compacted), pa.string())})
            self._connection.register("fresh_names", table)
            self._connection.execute("INSERT INTO store.compacted FROM fresh_names")
            self._connection.unregister("fresh_names")

    def _read(self, changed: list[tuple[str, Files]]) -> int:
        """Read what is new of those logs, fold it and store it; how many of them had anything new."""
        plain, large = list[str](), list[str]()
        total = 0
        for name, now in changed:
            logs = self._logs.setdefault(name, RunLogs.of(self.outputs / name))
            total += logs.unread_bytes(now)
            logs.remember(now)
            (large if logs.only_file(now) else plain).append(name)
        if total < BULK_BYTES:
            plain, large = [name for name, _ in changed], []
        touched = set[str]()
        for name in plain:
            self._read_plain(name, touched)
        if large:
            self._read_bulk(large, touched)
        for name in touched:
            self._states[name].bad_lines = self.bad_lines(name)
        self._replace_rows({name: self._row(name) for name in sorted(touched)})
        return len(touched)

    def _row(self, name: str) -> dict[str, Any]:
        return {**run_row(self._states[name]), "archived": self._states[name].archived}

    def _read_plain(self, name: str, touched: set[str]) -> None:
        try:
            events = self._logs[name].read_new()
        except OSError as error:
            self._leave_out(name, error, touched)
            return
        state = self._states.setdefault(name, RunState(name))
        if len(self._logs[name].files) > 1 and any(event.ts < (state.updated or "") for event in events):
            self._disordered.add(name)
        for event in events:
            state.apply(event)
        if events:
            self._insert(name, events)
        touched.add(name)

    def _read_bulk(self, names: list[str], touched: set[str]) -> None:
        readers = {name: reader for name in names if (reader := self._logs[name].only_file(self._logs[name].files))}

        def take(piece: Piece, folded: bulk.Folded) -> None:
            touched.add(piece.run)
            folded.apply(self._states.setdefault(piece.run, RunState(piece.run)))
            if folded.odd:
                self._insert(piece.run, folded.odd)
            if folded.steps is not None and len(folded.steps.step):
                self.curves.grew(piece.run, int(folded.steps.step.min()))

        self._uncompressed += self._loaders.read(
            readers, take, lambda name, error: self._leave_out(name, error, touched)
        )

    def _insert(self, run: str, events: list[Event]) -> None:
        steps = [event for event in events if event.type == "train.step"]
        self._waiting.add(run, events, steps)
        known = [step for event in steps if (step := whole_number(event.data.get("step"))) is not None]
        if known:
            self.curves.grew(run, min(known))

    def _store_waiting(self) -> None:
        self._waiting.store()
        if names := sorted(self._waiting_runs):
            self._connection.execute("DELETE FROM store.run_rows WHERE list_contains(?, run)", [names])
            insert_runs(self._connection, [self.rows[name] for name in names])
            self._waiting_runs.clear()

    def _leave_out(self, name: str, error: OSError, touched: set[str]) -> None:
        """Part of it may have been read: it leaves, and is read from its start once it can be."""
        self.unreadable[name] = str(unreadable(name, error))
        self._forget({name})
        touched.discard(name)

    def _forget(self, names: set[str]) -> None:
        for name in names:
            self._logs.pop(name, None)
            self._states.pop(name, None)
            self.rows.pop(name, None)
            self.versions.pop(name, None)
            self._waiting_runs.discard(name)
            self.compacted.discard(name)
            self._disordered.discard(name)
        if names:
            self._waiting.store()
            self.curves.forget(names)
            for table in _TABLES:
                self._connection.execute(f"DELETE FROM {table} WHERE list_contains(?, run)", [sorted(names)])

    def _replace_rows(self, rows: dict[str, dict[str, Any]]) -> None:
        self.rows |= rows
        self._waiting_runs |= set(rows)
        for name in rows:
            self._changes += 1
            self.versions[name] = self._changes


def connect() -> duckdb.DuckDBPyConnection:
    """An empty database in memory that keeps what it holds compressed, and moves aside what gets too much."""
    aside = os.path.join(tempfile.gettempdir(), f"fluxgym-history-{os.getpid()}-{secrets.token_hex(4)}")
    connection = duckdb.connect(":memory:", config={"temp_directory": aside, "memory_limit": _MEMORY})
    # Fresh memory is what costs most here: keep what was given back. Compression waits for a quiet moment.
    connection.execute(f"SET block_allocator_memory = '{_MEMORY}'; SET checkpoint_threshold = '1GB'")
    connection.execute("SET TimeZone = 'UTC'; ATTACH ':memory:' AS history (COMPRESS); USE history")
    return connection


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
