"""The guarded process of `run_sql`: reads one question (JSON) on standard input, writes one answer, and ends.

Run by its path with `python -I` and an empty environment. It imports nothing of FluxGym's.
"""

from __future__ import annotations

import json
import math
import re
import resource
import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import duckdb

SETTINGS: dict[str, Any] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "memory_limit": "1GB",
    "threads": "2",
}
READ_ONLY = "only one SELECT at a time is answered here; nothing can be changed"


def main() -> None:
    """The process: the question (see answer_question) in, the answer out, at most `max_output_bytes` of it."""
    question = json.loads(sys.stdin.buffer.read())
    answer = answer_question(question)
    output = json.dumps(answer).encode()
    if len(output) > question["max_output_bytes"]:
        output = json.dumps(
            {"error": "the answer is too large; ask for fewer or shorter columns, or fewer rows"}
        ).encode()
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


def answer_question(question: dict[str, Any]) -> dict[str, Any]:
    """What `fetch` gives for `sql` over the file `database`; else `error`, a sentence, or `unusable`: no such database.

    `memory_bytes`, `seconds` and `max_rows` bound it, and the process from then on.
    """
    limit(question["memory_bytes"], question["seconds"])
    try:
        opened = duckdb.connect(question["database"], read_only=True, config=SETTINGS)
    except duckdb.Error as error:
        return {"unusable": first_lines(str(error))}
    try:
        with opened as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET lock_configuration = true")
            statements = connection.extract_statements(question["sql"])
            if len(statements) != 1 or statements[0].type.name not in ("SELECT", "EXPLAIN"):
                return {"error": READ_ONLY}
            return fetch(connection, statements[0], question["max_rows"])
    except (MemoryError, duckdb.OutOfMemoryException):
        return {"error": "the statement needed more memory than it gets; narrow it down"}
    except (duckdb.Error, RuntimeError, ValueError, TypeError, OverflowError) as error:
        text = first_lines(str(error))
        if "read-only mode" in text:
            text = READ_ONLY
        elif "pytz" in text:
            text = "a time with a zone inside a list or a struct can't be shown; cast it, as in now()::TIMESTAMP"
        return {"error": text}


def limit(memory_bytes: int, seconds: float) -> None:
    """No file can grow, no core is dumped, and memory and processor time are bounded, whatever the engine thinks."""
    cpu = max(1, math.ceil(seconds * 2)) + 1  # two threads
    for what, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, hard = resource.getrlimit(what)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (bound, bound))


def fetch(connection: Any, statement: Any, max_rows: int) -> dict[str, Any]:
    """`columns`, their `types`, at most `max_rows` of the `rows` as JSON has them; `truncated`: there were more."""
    result = connection.execute(statement)
    columns = [column[0] for column in result.description or []]
    types = [str(column[1]) for column in result.description or []]
    # Python would need another package for times with a zone (UTC is what we have), and its spans know no months.
    casts = {"TIMESTAMP WITH TIME ZONE": "::TIMESTAMP", "INTERVAL": "::VARCHAR"}
    if not casts.keys().isdisjoint(types):
        picked = (f"#{i}{casts.get(type, '')}" for i, type in enumerate(types, 1))
        result = connection.execute(f"SELECT {', '.join(picked)} FROM (\n{statement.query.rstrip().rstrip(';')}\n)")
        types = [str(column[1]) for column in result.description]
    rows = result.fetchmany(max_rows + 1)
    return {
        "columns": columns,
        "types": types,
        "rows": [[plain(value, type) for value, type in zip(row, types, strict=True)] for row in rows[:max_rows]],
        "truncated": len(rows) > max_rows,
    }


def plain(value: Any, type: str = "") -> Any:
    """`value` as JSON has it (and Python's reader takes: nan and inf stay numbers)."""
    if type == "JSON" and isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return str(value)


def first_lines(text: str) -> str:
    """The engine's message in one line: without its picture of the statement and its stack."""
    kept = []
    for line in text.splitlines():
        if re.match(r"LINE \d+:|\s*\^|Stack Trace", line):
            break
        kept.append(line.strip())
    return " ".join(" ".join(kept).split())[:500] or "the statement can't be carried out"


if __name__ == "__main__":
    main()
