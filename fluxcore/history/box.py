"""A person's SQL, safe to leave open to guests: one SELECT over a read-only copy, in a guarded process of its own.

The engine's own locks are not enough (docs/sql.md tells what gets past them), so the process has an empty environment,
may write no file, has little memory and time, and is killed with all it started when its time is over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxcore.errors import UserError

from .logs import Signature, current_signature

if TYPE_CHECKING:
    from .engine import History

MAX_ROWS = 5000
MAX_SECONDS = 10.0
MEMORY_BYTES = 2 * 1024**3
MAX_OUTPUT_BYTES = 64 * 1024**2
MAX_STATEMENT_BYTES = 64 * 1024
KEEP_COPY_SECONDS = 60.0
LOOK_SECONDS = 0.1
"""How often a statement that can be cancelled looks whether it was."""
TOO_LONG = "the statement took longer than {:g} s; narrow it down"
SANDBOX = Path(__file__).with_name("sandbox.py")


class SqlRefused(UserError):
    """A statement that is not carried out: no SELECT, wrong, or too much for the time and memory it gets."""

    exit_code = 65


@dataclass(frozen=True)
class SqlResult:
    """Rows of Python values: numbers (which may be nan or inf), text, bool, None, naive UTC datetimes, lists, dicts."""

    columns: list[str]
    types: list[str]
    rows: list[list[Any]]
    truncated: bool
    unreadable: list[str]
    """A sentence for each run that is left out because its log can't be read."""


def run_sql(
    outputs: Path,
    sql: str,
    *,
    max_rows: int = MAX_ROWS,
    seconds: float = MAX_SECONDS,
    history: History | None = None,
    cancel: threading.Event | None = None,
) -> SqlResult:
    """Answer one SELECT over all runs of `outputs`: at most `max_rows` rows, in at most `seconds`.

    `history`, where a process keeps one, saves reading the logs again; setting `cancel` in another thread ends the
    statement at once. Raises SqlRefused.
    """
    if not sql.strip():
        raise SqlRefused('there is no statement; try "SELECT run, state, step FROM runs"')
    if len(sql.encode(errors="replace")) > MAX_STATEMENT_BYTES:
        raise SqlRefused(f"the statement is longer than {MAX_STATEMENT_BYTES // 1024} KiB")
    with _copy(outputs, history) as (database, unreadable):
        answer = _ask(database, sql, max_rows, seconds, cancel)
    if "unusable" in answer:  # the kept copy is torn: it is derived, so away with it
        database.unlink(missing_ok=True)
        with _copy(outputs, history) as (database, unreadable):
            answer = _ask(database, sql, max_rows, seconds, cancel)
    if "error" in answer or "unusable" in answer:
        raise SqlRefused(str(answer.get("error") or answer["unusable"]))
    types = list(answer["types"])
    rows = [[_value(value, type) for value, type in zip(row, types, strict=True)] for row in answer["rows"]]
    return SqlResult(list(answer["columns"]), types, rows, bool(answer["truncated"]), unreadable)


def _value(value: Any, type: str) -> Any:
    if isinstance(value, str) and type == "TIMESTAMP":
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(value)
    return value


@contextmanager
def _copy(outputs: Path, history: History | None) -> Iterator[tuple[Path, list[str]]]:
    """A DuckDB file with the history as it is now, kept in `.history/` as long as no log changes; what it lacks."""
    import duckdb

    if kept := _kept_copy(outputs, history):
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="fluxgym-sql-") as aside:
        path = Path(aside) / "history.duckdb"
        try:
            _, unreadable = _write_copy(outputs, path, history)
        except duckdb.OperationalError as error:
            raise SqlRefused(f"there is no room for a copy of the history ({str(error).splitlines()[0]})") from None
        yield path, unreadable


def _kept_copy(outputs: Path, history: History | None) -> tuple[Path, list[str]] | None:
    """The copy in `.history/`, made anew where it is out of date; None where none can be kept there."""
    import duckdb

    folder = outputs / ".history"
    aside = folder / f".{secrets.token_hex(6)}.tmp"
    try:
        if not outputs.is_dir():
            return None
        folder.mkdir(exist_ok=True)
        with history.copying if history is not None else contextlib.nullcontext():
            path, unreadable = folder / _copy_name(current_signature(outputs)), list[str]()
            if not path.is_file():
                signature, unreadable = _write_copy(outputs, aside, history)
                path = folder / _copy_name(signature)
                os.replace(aside, path)
    except (OSError, duckdb.OperationalError):  # a full disk, or a folder that is not ours to write in
        return None
    finally:
        for left in (aside, aside.with_name(f"{aside.name}.wal")):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
    for old in (*folder.glob("sql-*.duckdb"), *folder.glob(".*.tmp"), *folder.glob(".*.tmp.wal")):  # kills leave some
        with contextlib.suppress(OSError):
            if old != path and time.time() - old.stat().st_mtime > KEEP_COPY_SECONDS:
                old.unlink()
    return path, unreadable


def _copy_name(signature: Signature) -> str:
    import duckdb

    from .views import TABLES, VIEWS

    text = json.dumps([duckdb.__version__, TABLES, VIEWS, signature])
    return f"sql-{hashlib.sha256(text.encode()).hexdigest()[:24]}.duckdb"


def _write_copy(outputs: Path, path: Path, history: History | None) -> tuple[Signature, list[str]]:
    from .engine import History

    with contextlib.ExitStack() as stack:
        source = history if history is not None else stack.enter_context(History(outputs))
        source.refresh()
        return source.save_copy(path)


def _ask(database: Path, sql: str, max_rows: int, seconds: float, cancel: threading.Event | None) -> dict[str, Any]:
    question = {
        "database": database.name,
        "sql": sql,
        "max_rows": max_rows,
        "seconds": seconds,
        "memory_bytes": MEMORY_BYTES,
        "max_output_bytes": MAX_OUTPUT_BYTES,
    }
    child = subprocess.Popen(
        [sys.executable, "-I", str(SANDBOX)],
        cwd=database.parent,
        env={},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    asked: bytes | None = json.dumps(question).encode()
    deadline = time.monotonic() + seconds + 1.0
    output = None
    try:
        while output is None:
            rest = deadline - time.monotonic()
            if rest <= 0:
                return {"error": TOO_LONG.format(seconds)}
            if cancel is not None and cancel.is_set():
                return {"error": "the statement was cancelled"}
            with contextlib.suppress(subprocess.TimeoutExpired):
                output, _ = child.communicate(asked, timeout=rest if cancel is None else min(rest, LOOK_SECONDS))
            asked = None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    try:
        answer = json.loads(output)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    if child.returncode == -signal.SIGXCPU:
        return {"error": TOO_LONG.format(seconds)}
    return {"error": "the statement needed more memory than it gets; narrow it down"}
