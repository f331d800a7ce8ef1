"""Questions to the history that are worth keeping: some to begin with, and a person's own."""

from __future__ import annotations

from pathlib import Path

import orjson

from fluxcore.atomic import write_atomic
from fluxcore.errors import UserError

FILE = ".queries.json"
MOST = 100
MAX_NAME = 80

EXAMPLES = {
    "All runs": """SELECT run, state, step, total_steps, round(loss, 4) AS loss, round(best_loss, 4) AS best,
       base_model, attempts, stalls, started
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
    try:
        read = orjson.loads((outputs / FILE).read_bytes())
        return {str(name): str(sql) for name, sql in read["queries"].items()}
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return {}


def save_query(outputs: Path, name: str, sql: str) -> None:
    """Keep `sql` under `name`, in the place of what was there. Raises UserError."""
    name = " ".join(name.split())
    if not name or len(name) > MAX_NAME:
        raise UserError(f"give the query a name of at most {MAX_NAME} characters")
    if name in EXAMPLES:
        raise UserError(f"{name!r} is one of those that come along; choose another name")
    there = load_queries(outputs) | {name: sql}
    if len(there) > MOST:
        raise UserError(f"{MOST} queries are kept already; remove one first")
    _write(outputs, there)


def remove_query(outputs: Path, name: str) -> None:
    """Forget it. Raises UserError."""
    _write(outputs, {other: sql for other, sql in load_queries(outputs).items() if other != name})


def _write(outputs: Path, queries: dict[str, str]) -> None:
    data = orjson.dumps({"queries": queries}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    try:
        write_atomic(outputs / FILE, data)
    except OSError as error:
        raise UserError(f"the query can't be kept ({error.strerror}): make room in {outputs}") from None
