"""Events and runs as rows: what `History` inserts one refresh at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from fluxcore.log import Event, number, whole_number

from .views import RUN_COLUMNS, STEP_COLUMNS

_INT64 = 2**63
_ARROW = {
    "VARCHAR": pa.string(),
    "TIMESTAMP": pa.timestamp("us"),
    "DOUBLE": pa.float64(),
    "BIGINT": pa.int64(),
    "VARCHAR[]": pa.list_(pa.string()),
    "JSON": pa.string(),
}


def event_rows(run: str, events: list[Event]) -> pa.Table:
    """A run's events as `insert_events` takes them."""
    return pa.table(
        {
            "run": pa.array([run] * len(events), pa.string()),
            "ts": pa.array([event.ts for event in events], pa.string()),
            "type": pa.array([event.type for event in events], pa.string()),
            "source": pa.array([event.source for event in events], pa.string()),
            "writer": pa.array([event.writer for event in events], pa.string()),
            "n": pa.array([fitting(event.n, "BIGINT") for event in events], pa.int64()),
            "attempt": pa.array([fitting(event.attempt, "BIGINT") for event in events], pa.int64()),
            "data": pa.array([as_json(event.data) for event in events], pa.string()),
        }
    )


def insert_events(connection: duckdb.DuckDBPyConnection, rows: pa.Table) -> None:
    """Append `event_rows` to the store."""
    columns = "run, TRY_CAST(ts AS TIMESTAMP), type, source, writer, n, TRY_CAST(attempt AS INTEGER), data"
    _insert(connection, "store.event_rows", columns, rows)


def step_rows(run: str, steps: list[Event]) -> pa.Table:
    """A run's `train.step` events as `insert_steps` takes them."""
    columns = {name: _numbers([event.data.get(name) for event in steps], kind) for name, kind in STEP_COLUMNS.items()}
    columns["run"] = pa.array([run] * len(steps), pa.string())
    columns["attempt"] = pa.array([fitting(event.attempt, "BIGINT") for event in steps], pa.int64())
    columns["ts"] = pa.array([event.ts for event in steps], pa.string())
    return pa.table(columns)


def insert_steps(connection: duckdb.DuckDBPyConnection, rows: pa.Table) -> None:
    """Append `step_rows` to the store."""
    columns = f"run, TRY_CAST(attempt AS INTEGER), TRY_CAST(ts AS TIMESTAMP), {', '.join(STEP_COLUMNS)}"
    _insert(connection, "store.step_rows", columns, rows)


def insert_runs(connection: duckdb.DuckDBPyConnection, rows: Iterable[dict[str, Any]]) -> None:
    """Append `run_row`s."""
    found = [{**row, "config": as_json(row["config"])} for row in rows]
    columns = {
        name: pa.array([fitting(row[name], kind) for row in found], _ARROW[kind], from_pandas=False)
        for name, kind in RUN_COLUMNS.items()
    }
    _insert(connection, "store.run_rows", ", ".join(f'"{name}"' for name in RUN_COLUMNS), pa.table(columns))


def _insert(connection: duckdb.DuckDBPyConnection, table: str, columns: str, rows: pa.Table) -> None:
    connection.register("fresh_rows", rows)
    try:
        connection.execute(f"INSERT INTO {table} SELECT {columns} FROM fresh_rows").fetchall()
    finally:
        connection.unregister("fresh_rows")


def fitting(value: Any, kind: str) -> Any:
    """One wrong number or name in a log must not stop the history: what doesn't fit its column is NULL."""
    if kind == "BIGINT":
        return value if type(value) is int and -_INT64 <= value < _INT64 else None
    if kind == "VARCHAR" and not isinstance(value, str):
        return None if value is None else str(value)
    return value


def _numbers(values: list[Any], kind: str) -> pa.Array:
    """A column of numbers; what is none, or has another form, is looked at one by one."""
    usual = int if kind == "BIGINT" else float
    if any(type(value) is not usual for value in values):
        values = [fitting(whole_number(value), kind) if kind == "BIGINT" else number(value) for value in values]
    elif kind == "BIGINT" and not (min(values) >= -_INT64 and max(values) < _INT64):
        values = [fitting(value, kind) for value in values]
    return pa.array(values, _ARROW[kind], from_pandas=False)


def as_json(value: Any) -> str:
    """Data of an event as JSON text again; it came out of a log's JSON, so nothing in it is not finite."""
    return orjson.dumps(value, default=str).decode()
