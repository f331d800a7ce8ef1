"""`sql`: a read-only question over all runs; `compact`: what makes it fast over many."""

from __future__ import annotations

import csv
import sys
from typing import Annotated, Any

import orjson
import typer

from fluxcore.errors import UserError

from .options import Outputs, outputs_folder
from .out import note, say, table, to_json

FORMATS = ("table", "csv", "json")


def sql(
    statement: Annotated[str, typer.Argument(metavar="STATEMENT", help="One SELECT.", show_default=False)],
    format: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = "table",
    max_rows: Annotated[int, typer.Option(min=1, max=1_000_000, help="Show at most so many rows.")] = 5000,
    outputs: Outputs = None,
) -> None:
    """Ask all runs in SQL: views events, runs, steps, gpu, host, checkpoints, samples, validation, stalls
    (docs/sql.md)."""
    if format not in FORMATS:
        raise UserError(f"--format takes {', '.join(FORMATS)}, not {format!r}")
    from fluxcore.history import run_sql

    folder = outputs_folder(outputs)
    if not folder.is_dir():
        note(f"{folder} is no folder: there are no runs in it")
    result = run_sql(folder, statement, max_rows=max_rows)
    for problem in result.unreadable:
        note(f"left out: {problem}")
    if format == "json":
        names = _unlike(result.columns)
        say(to_json([dict(zip(names, row, strict=True)) for row in result.rows]))
    elif format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(result.columns)
        writer.writerows([_csv(value) for value in row] for row in result.rows)
    else:
        numeric = {name for name, type in zip(result.columns, result.types, strict=True) if type in NUMERIC}
        table(result.columns, result.rows, right=numeric, records=True)
    if result.truncated:
        note(f"only the first {max_rows} rows are shown; add LIMIT, or raise --max-rows")


def compact(outputs: Outputs = None) -> None:
    """Put finished runs into one Parquet, for a fast history; their logs stay as they are."""
    from fluxcore.history.compaction import compact

    folder = outputs_folder(outputs)
    runs, new = compact(folder)
    what = f"{runs} finished run{'' if runs == 1 else 's'} in {folder / '.history'}"
    say(f"{what}, {new} of them new" if new else f"{what}, nothing new")


NUMERIC = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UBIGINT", "FLOAT", "DOUBLE"})


def _unlike(columns: list[str]) -> list[str]:
    """The columns' names, of which an object has each but once: a second `step` is `step_2`."""
    found: list[str] = []
    for name in columns:
        other, count = name, 1
        while other in found:
            count += 1
            other = f"{name}_{count}"
        found.append(other)
    return found


def _csv(value: Any) -> Any:
    if isinstance(value, dict | list):
        return orjson.dumps(value, default=str).decode()
    return value
