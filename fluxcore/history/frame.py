"""One run's steps straight out of its log as a table: for a notebook, where all runs' history would take longer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from fluxcore.errors import UserError

from .views import STEP_COLUMNS, STEP_ROW

DEFAULT_COLUMNS = ("step", "epoch", "ts", "loss", "lr", "grad_norm")
COLUMNS = tuple(name for name in STEP_ROW if name != "run")


def read_steps(folder: Path, columns: Sequence[str] = DEFAULT_COLUMNS) -> pa.Table:
    """The `columns` of the `steps` view of the run in `folder`, by step: of each step the highest attempt's.

    Raises UserError where there is no column or one that is none of COLUMNS, OSError where the log can't be read.
    """
    if not columns:
        raise UserError(f"name at least one column of the steps; there are {', '.join(COLUMNS)}")
    if wrong := [name for name in columns if name not in COLUMNS]:
        raise UserError(f"{wrong[0]!r} is no column of the steps; there are {', '.join(COLUMNS)}")
    names = dict.fromkeys(["step", *(name for name in columns if name in STEP_COLUMNS)])
    values = ", ".join(f"TRY_CAST(data['{name}'] AS {STEP_COLUMNS[name]}) AS {name}" for name in names)
    data = ", ".join(f"{name} VARCHAR" for name in names)
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "rb")) for path in sorted(folder.glob("events*.jsonl"))]
        # By descriptor: a path with a bracket in it would be a pattern.
        paths = [f"/proc/self/fd/{file.fileno()}" for file in files]
        once = "QUALIFY row_number() OVER (PARTITION BY writer, n) = 1" if len(paths) > 1 else ""
        connection = stack.enter_context(duckdb.connect())
        found = connection.sql(
            f"""SELECT TRY_CAST(attempt AS INTEGER) AS attempt, TRY_CAST(ts AS TIMESTAMP) AS ts, {values}
            FROM read_json({paths!r}, format = 'newline_delimited', ignore_errors = true,
                maximum_object_size = 1048576, columns = {{type: 'VARCHAR', attempt: 'VARCHAR', ts: 'VARCHAR',
                writer: 'VARCHAR', n: 'VARCHAR', data: 'STRUCT({data})'}})
            WHERE type = 'train.step' {once}"""
        ).to_arrow_table()
        step = found["step"]
        if step.null_count or not bool((np.diff(step.to_numpy()) > 0).all()):  # a look is quicker than to sort them
            last = "QUALIFY step IS NULL OR row_number() OVER (PARTITION BY step ORDER BY attempt DESC) = 1"
            connection.register("found", found)
            found = connection.sql(f"SELECT * FROM found {last} ORDER BY step, ts").to_arrow_table()
        return found.select(list(columns))
