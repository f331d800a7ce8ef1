"""SQL over all runs: DuckDB fed from the logs, and a guarded box for a person's questions.

    connect(outputs)         an in-memory DuckDB with the contract's views, brought up to date by `refresh()`
    run_sql(outputs, sql)    one SELECT in a process of its own that can neither write nor read anything else

DuckDB is imported when one of them is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .box import SqlRefused, SqlResult, run_sql
from .run_row import run_row

if TYPE_CHECKING:
    from .engine import History

__all__ = ["SqlRefused", "SqlResult", "connect", "run_row", "run_sql"]


def connect(outputs: Path) -> History:
    """The history of an outputs folder, up to date. `refresh()` takes in what came since; close it when done."""
    from .engine import History

    history = History(outputs)
    history.refresh()
    return history
