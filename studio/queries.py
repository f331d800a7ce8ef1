"""Questions to the history that are worth keeping: some to begin with, a person's own, and what stands in the box."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import orjson

from fluxcore.atomic import write_atomic
from fluxcore.errors import UserError

FILE = ".queries.json"
MOST = 100
MAX_NAME = 80
_one_at_a_time = threading.Lock()

EXAMPLES = {
    "All runs": """SELECT run, nullif(title, '') AS title, state, step, total_steps, round(loss, 4) AS loss,
       round(best_loss, 4) AS best, base_model, attempts, stalls, started
FROM runs
ORDER BY created DESC""",
    "Loss by epoch": """SELECT run, epoch, avg(loss) AS loss, min(loss) AS best
FROM steps
WHERE run IN (SELECT run FROM runs ORDER BY created DESC LIMIT 4)
GROUP BY run, epoch
ORDER BY run, epoch""",
    "What a learning rate did": """SELECT config->>'learning_rate' AS learning_rate, count(*) AS runs,
       avg(best_loss) AS best, avg(seconds) / 60 AS minutes
FROM runs
WHERE state = 'completed'
GROUP BY ALL
ORDER BY best""",
    "Stalls and failures": """SELECT ts, run, type, data->>'verdict' AS verdict, data->>'reason' AS reason,
       data->>'hint' AS hint
FROM events
WHERE type IN ('run.stalled', 'run.failed')
ORDER BY ts DESC""",
    "How busy the GPU was": """SELECT run, avg(utilization_percent) AS busy, max(memory_used_gib) AS memory,
       max(temperature_c) AS hottest, avg(power_watts) AS watts
FROM gpu
GROUP BY run
ORDER BY busy""",
    "Seconds a step, by hour": """SELECT run, date_trunc('hour', ts) AS hour, median(step_seconds) AS seconds
FROM steps
GROUP BY ALL
ORDER BY run, hour""",
    "The best LoRA of each run": """SELECT run, min_by(path, v.loss) AS lora, min_by(step, v.loss) AS step,
       min(v.loss) AS held_out
FROM checkpoints JOIN validation v USING (run, step)
WHERE kind = 'weights'
GROUP BY run
ORDER BY held_out""",
    "Checkpoints and their size": """SELECT run, kind, count(*) AS files, sum(bytes) / 1e9 AS gigabytes
FROM checkpoints
GROUP BY run, kind
ORDER BY gigabytes DESC""",
}


def load_queries(outputs: Path) -> dict[str, str]:
    """A person's own, by name. A file that can't be understood holds none."""
    queries = _read(outputs).get("queries")
    return {str(name): str(sql) for name, sql in queries.items()} if isinstance(queries, dict) else {}


def load_box(outputs: Path) -> str:
    """What stood in the box last; "" where nothing did."""
    return str(_read(outputs).get("box") or "")


def save_query(outputs: Path, name: str, sql: str) -> None:
    """Keep `sql` under `name`, in the place of what was there. Raises UserError."""
    name = " ".join(name.split())
    if not name or len(name) > MAX_NAME:
        raise UserError(f"give the query a name of at most {MAX_NAME} characters")
    if name in EXAMPLES:
        raise UserError(f"{name!r} is one of those that come along; choose another name")
    with _one_at_a_time:
        there = load_queries(outputs) | {name: sql}
        if len(there) > MOST:
            raise UserError(f"{MOST} queries are kept already; remove one first")
        _write(outputs, queries=there)


def remove_query(outputs: Path, name: str) -> None:
    """Forget it. Raises UserError."""
    with _one_at_a_time:
        _write(outputs, queries={other: sql for other, sql in load_queries(outputs).items() if other != name})


def keep_box(outputs: Path, sql: str) -> None:
    """Keep what stands in the box: a reload, a crash or another browser finds it. Raises UserError."""
    with _one_at_a_time:
        _write(outputs, box=sql)


def _read(outputs: Path) -> dict[str, Any]:
    try:
        read = orjson.loads((outputs / FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return read if isinstance(read, dict) else {}


def _write(outputs: Path, **changed: Any) -> None:
    data = orjson.dumps(_read(outputs) | changed, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    try:
        write_atomic(outputs / FILE, data)
    except OSError as error:
        raise UserError(f"the query can't be kept ({error.strerror}): make room in {outputs}") from None
