"""Reading many log lines at once with DuckDB's own JSON reader: a million events in about a second.

What a line means is said in one place, `fluxcore.log.event.decode`. Here only lines that can't mean anything else are
taken natively; each line about which there is the least doubt ("odd") goes through `decode` after all. A test compares
both on mutated lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import orjson
import pyarrow as pa

from fluxcore.log import Event
from fluxcore.runs import RunState
from fluxcore.runs.bulk import StepColumns, apply_steps

from .batch import Batch, Piece
from .views import EVENT_COLUMNS, STEP_COLUMNS, STEP_ROW

_LONGEST_LINE = 1024 * 1024  # four times the contract's; lines of a file with a longer one are all decoded
_SHAPE = orjson.dumps(dict.fromkeys(STEP_COLUMNS, "DOUBLE")).decode()
_TS = "%Y-%m-%dT%H:%M:%S.%fZ"
_SAMPLED = ("gpu.sampled", "host.sampled")
"""Frequent types of which the fold needs only the last: they commute with everything else."""

_LINE = (
    "v: 'JSON', ts: 'TIMESTAMP', run: 'VARCHAR', type: 'VARCHAR', source: 'VARCHAR', writer: 'VARCHAR', n: 'JSON', "
    "attempt: 'JSON', data: 'JSON'"
)


def _is_text(column: str) -> str:
    # A value that is no string arrives as its JSON: a digit, a minus, a bracket or one of two words comes first.
    return f"{column} >= 'a' AND {column} < '{{' AND {column} NOT IN ('true', 'false')"


def _is_count(column: str) -> str:
    column = f"{column}::VARCHAR"
    return (
        f"{column} >= '0' AND {column} < ':' AND length({column}) < 10"
        f" AND NOT contains({column}, '.') AND NOT contains({column}, 'e') AND NOT contains({column}, 'E')"
    )


_SURE = f"""ts IS NOT NULL AND run IS NOT NULL AND {_is_text("type")} AND {_is_text("source")} AND {_is_text("writer")}
    AND v::VARCHAR = '1' AND {_is_count("n")} AND (attempt IS NULL OR {_is_count("attempt")})
    AND starts_with(data, '{{')"""
_ODD_STEP = "contains(data, ':\"') OR contains(data, ': ') OR contains(data, ':t') OR contains(data, ':f')"
"""A step with text or truth values among its numbers, or written in another way than ours."""
_ODD_NUMBERS = " OR ".join(
    f"NOT isfinite({name})" + (f" OR {name} <> floor({name}) OR abs({name}) >= 1e15" if kind == "BIGINT" else "")
    for name, kind in STEP_COLUMNS.items()
)
"""A step with a number that is not finite (DuckDB knows NaN, JSON does not), or a count that is not whole."""
_ODD_OTHER = r"regexp_matches(data, 'NaN|nan|nf|\d[eE]\+?\d{3}')"
"""The same in what is no step; a word that happens to look like that only costs time."""


@dataclass
class Folded:
    """What the fold has to see of a piece: its events without most steps and samples, which are in columns."""

    events: list[tuple[int, Event]]
    """With their line numbers."""
    odd: list[Event]
    """Those of the events that are not in the tables yet."""
    steps: StepColumns | None = None
    places: Any = None
    """The steps' line numbers."""
    first: str | None = None
    last: str | None = None
    """`ts` of the first and the last event."""

    def apply(self, state: RunState) -> None:
        """Fold the piece into `state`, in the log's order."""
        state.created = state.created or self.first
        taken = 0
        for place, event in self.events:
            if self.steps is not None and (until := int(np.searchsorted(self.places, place))) > taken:
                apply_steps(state, self.steps.between(taken, until))
                taken = until
            state.apply(event)
        if self.steps is not None:
            apply_steps(state, self.steps.between(taken, len(self.places)))
        state.updated = self.last or state.updated


class Loader:
    """A batch and a connection of its own to the store, so that two can load at a time."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.batch = Batch()
        self._connection = connection

    def load(self) -> list[Folded]:
        """Insert the batch's sure lines into the store; what is left to do for each of its pieces.

        Not inside a transaction: there the rows of a new table have other numbers.
        """
        return _load(self._connection, self.batch)

    def close(self) -> None:
        """Give the memory back."""
        self.batch.close()
        self._connection.close()


def _load(connection: duckdb.DuckDBPyConnection, batch: Batch) -> list[Folded]:
    pieces = batch.pieces
    if not batch.size:
        return [Folded([], []) for _ in pieces]
    batch.seal()
    ends = np.cumsum([piece.lines for piece in pieces])
    if not _read(connection, batch, ends):
        return [_decoded(batch, piece) for piece in pieces]
    execute = connection.execute
    starts = ends - [piece.lines for piece in pieces]
    doubtful = [int(start) + number for piece, start in zip(pieces, starts, strict=True) for number in piece.doubtful]
    try:
        if doubtful:
            execute("UPDATE fresh SET odd = true WHERE list_contains(?, rowid)", [doubtful])
        execute(
            "CREATE OR REPLACE TEMP TABLE fresh_steps AS SELECT rowid AS place, run, attempt, ts,"
            f" unnest(json_transform(data, '{_SHAPE}')) FROM fresh WHERE type = 'train.step' AND NOT odd"
        ).fetchall()
        if odd := execute(f"SELECT place FROM fresh_steps WHERE {_ODD_NUMBERS}").fetchall():
            places = [place for (place,) in odd]
            execute("UPDATE fresh SET odd = true WHERE list_contains(?, rowid)", [places])
            execute("DELETE FROM fresh_steps WHERE list_contains(?, place)", [places])
        execute(f"INSERT INTO store.event_rows SELECT {', '.join(EVENT_COLUMNS)} FROM fresh WHERE NOT odd").fetchall()
        execute(f"INSERT INTO store.step_rows SELECT {', '.join(STEP_ROW)} FROM fresh_steps").fetchall()
        return _folded(connection, batch, ends)
    finally:
        execute("DROP TABLE IF EXISTS fresh; DROP TABLE IF EXISTS fresh_steps")


def _read(connection: duckdb.DuckDBPyConnection, batch: Batch, ends: Any) -> bool:
    """Parse all lines into the temporary table `fresh`; False where they don't become a row each."""
    pieces = batch.pieces
    parsed = (
        "SELECT ts, type, source, writer, TRY_CAST(n::VARCHAR AS BIGINT) AS n,"
        f" TRY_CAST(attempt::VARCHAR AS INTEGER) AS attempt, data, coalesce(NOT ({_SURE}), true)"
        f" OR CASE type WHEN 'train.step' THEN {_ODD_STEP} ELSE {_ODD_OTHER} END AS odd FROM read_json('{batch.path}',"
        f" format = 'newline_delimited', columns = {{{_LINE}}}, ignore_errors = true,"
        f" maximum_object_size = {_LONGEST_LINE})"
    )
    try:
        if len(pieces) == 1:
            statement = f"CREATE OR REPLACE TEMP TABLE fresh AS SELECT ? AS run, * FROM ({parsed})"
            connection.execute(statement, [pieces[0].run]).fetchall()
        else:
            connection.execute(f"CREATE OR REPLACE TEMP TABLE parsed AS {parsed}").fetchall()
    except duckdb.Error:  # a line longer than it takes; anything else comes up again on the other path
        return False
    if len(pieces) > 1:
        counts = [piece.lines for piece in pieces]
        names = pa.DictionaryArray.from_arrays(
            np.repeat(np.arange(len(pieces), dtype=np.int32), counts), [piece.run for piece in pieces]
        )
        connection.register("names", pa.table({"run": names}))
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE fresh AS SELECT names.run::VARCHAR AS run, parsed.*"
            " FROM parsed POSITIONAL JOIN names"
        ).fetchall()
        connection.unregister("names")
        (rows,) = connection.execute("SELECT count(*) FROM parsed").fetchall()[0]
        connection.execute("DROP TABLE parsed")
    else:
        (rows,) = connection.execute("SELECT count(*) FROM fresh").fetchall()[0]
    return bool(rows == ends[-1])  # a blank line is no row


def _folded(connection: duckdb.DuckDBPyConnection, batch: Batch, ends: Any) -> list[Folded]:
    places, steps = _step_columns(connection)
    seen = _events(connection)
    edges = {
        run: edge
        for run, *edge in connection.execute(
            f"SELECT run, min(rowid), max(rowid), strftime(arg_min(ts, rowid), '{_TS}'),"
            f" strftime(arg_max(ts, rowid), '{_TS}') FROM fresh WHERE NOT odd GROUP BY run"
        ).fetchall()
    }
    odd_places = np.array(connection.execute("SELECT rowid FROM fresh WHERE odd ORDER BY rowid").fetchall(), np.int64)
    cuts = np.searchsorted([place for place, _ in seen], ends).tolist()
    found: list[Folded] = []
    taken = 0
    for piece, start, end in zip(batch.pieces, np.concatenate([[0], ends[:-1]]), ends, strict=True):
        events = [(place - start, event) for place, event in seen[taken : cuts[len(found)]]]
        taken = cuts[len(found)]
        doubtful = odd_places[(odd_places >= start) & (odd_places < end)] - start
        odd = list(_decode(batch, piece, doubtful)) if len(doubtful) else []
        if odd:
            events = sorted(events + odd, key=lambda pair: pair[0])
        low, high = np.searchsorted(places, [start, end])
        first_place, last_place, first, last = edges.get(piece.run, (end, -1, None, None))
        if odd and odd[0][0] + start < first_place:
            first = odd[0][1].ts
        if odd and odd[-1][0] + start > last_place:
            last = odd[-1][1].ts
        found.append(
            Folded(events, [event for _, event in odd], steps.between(low, high), places[low:high] - start, first, last)
        )
    return found


def _step_columns(connection: duckdb.DuckDBPyConnection) -> tuple[Any, StepColumns]:
    wanted = list(StepColumns.__dataclass_fields__)
    rows = connection.sql(f"SELECT place, {', '.join(wanted)} FROM fresh_steps WHERE step IS NOT NULL").to_arrow_table()
    columns = {name: rows[name].to_numpy() for name in ("place", *wanted)}  # null becomes nan
    return columns.pop("place"), StepColumns(**columns)


def _events(connection: duckdb.DuckDBPyConnection) -> list[tuple[int, Event]]:
    """All sure events that are neither a step nor a sample, and the last sample of each GPU and host of each run."""
    rows = connection.execute(
        f"""WITH last AS (SELECT max(rowid) AS place FROM fresh WHERE type IN {_SAMPLED} AND NOT odd
            GROUP BY run, type, data->'uuid', data->'index')
        SELECT rowid, strftime(ts, '{_TS}'), run, type, source, writer, n, data, attempt
        FROM fresh WHERE NOT odd AND type <> 'train.step'
            AND (type NOT IN {_SAMPLED} OR rowid IN (SELECT place FROM last)) ORDER BY rowid"""
    ).fetchall()
    return [
        (place, Event(ts, run, type, source, writer, n, orjson.loads(data), attempt))
        for place, ts, run, type, source, writer, n, data, attempt in rows
    ]


def _decode(batch: Batch, piece: Piece, places: Any) -> Iterator[tuple[int, Event]]:
    lines = batch.lines(piece)
    for place in places.ravel().tolist():
        if event := piece.reader.decode(lines[place]):
            yield place, event


def _decoded(batch: Batch, piece: Piece) -> Folded:
    events = [event for line in batch.lines(piece) if (event := piece.reader.decode(line))]
    return Folded(list(enumerate(events)), events)
