"""The tables that hold the history and the views that the contract promises (section 5, docs/sql.md)."""

from __future__ import annotations

from pathlib import Path

EVENT_COLUMNS = {
    "run": "VARCHAR",
    "ts": "TIMESTAMP",
    "type": "VARCHAR",
    "source": "VARCHAR",
    "writer": "VARCHAR",
    "n": "BIGINT",
    "attempt": "INTEGER",
    "data": "JSON",
}

STEP_COLUMNS = {
    "step": "BIGINT",
    "total_steps": "BIGINT",
    "epoch": "BIGINT",
    "loss": "DOUBLE",
    "lr": "DOUBLE",
    "grad_norm": "DOUBLE",
    "step_seconds": "DOUBLE",
    "images_per_second": "DOUBLE",
    "memory_gib": "DOUBLE",
}
"""`train.step`, by far the most frequent event, is kept in columns as well; the others' are taken out of their JSON."""

STEP_ROW = {"run": "VARCHAR", "attempt": "INTEGER", "ts": "TIMESTAMP", **STEP_COLUMNS}

RUN_COLUMNS = {
    "run": "VARCHAR",
    "title": "VARCHAR",
    "state": "VARCHAR",
    "base_model": "VARCHAR",
    "trigger": "VARCHAR",
    "created": "TIMESTAMP",
    "started": "TIMESTAMP",
    "ended": "TIMESTAMP",
    "seconds": "DOUBLE",
    "step": "BIGINT",
    "total_steps": "BIGINT",
    "epoch": "BIGINT",
    "loss": "DOUBLE",
    "best_loss": "DOUBLE",
    "attempts": "BIGINT",
    "stalls": "BIGINT",
    "failures": "BIGINT",
    "reason": "VARCHAR",
    "resume_checkpoint": "VARCHAR",
    "resume_step": "BIGINT",
    "weights": "VARCHAR",
    "tags": "VARCHAR[]",
    "config": "JSON",
}


def _columns(columns: dict[str, str]) -> str:
    return ", ".join(f'"{name}" {kind}' for name, kind in columns.items())


TABLES = f"""
CREATE SCHEMA store;
CREATE TABLE store.event_rows ({_columns(EVENT_COLUMNS)});
CREATE TABLE store.step_rows ({_columns(STEP_ROW)});
CREATE TABLE store.run_rows ({_columns(RUN_COLUMNS)});
"""


def sources(compacted: Path | None = None) -> str:
    """The statements that say where events and steps lie: in memory, and those of compacted runs in that folder.

    Only the runs in `store.compacted` are taken from there: any other has changed since.
    """
    statements = []
    for name, rows, columns in (("events", "event_rows", EVENT_COLUMNS), ("steps", "step_rows", STEP_ROW)):
        select = f"SELECT {', '.join(columns)}"
        view = f"{select} FROM store.{rows}"
        if compacted:
            quoted = str(compacted / f"{name}.parquet").replace("'", "''")
            view += f" UNION ALL {select} FROM read_parquet('{quoted}') WHERE run IN (SELECT run FROM store.compacted)"
        statements.append(f"CREATE OR REPLACE VIEW store.all_{name} AS {view};")
    return "\n".join(statements)


def _from_data(columns: dict[str, str]) -> str:
    """SQL that takes `columns` out of `data`; a value of another kind is NULL, "nan" and "inf" are numbers."""
    parts = []
    for name, kind in columns.items():
        if kind == "JSON":
            parts.append(f"data->'{name}' AS {name}")
        elif kind == "VARCHAR":
            parts.append(f"data->>'{name}' AS {name}")
        else:
            parts.append(f"TRY_CAST(data->>'{name}' AS {kind}) AS {name}")
    return ", ".join(parts)


def _view(name: str, type: str, columns: dict[str, str], *, once: bool = False) -> str:
    # After a resume a step is there twice: the view shows the highest attempt's.
    keep = " QUALIFY rank() OVER (PARTITION BY run, step ORDER BY attempt DESC) = 1" if once else ""
    columns_sql = f"run, attempt, ts, {_from_data(columns)}"
    return f"CREATE VIEW {name} AS SELECT {columns_sql} FROM store.all_events WHERE type = '{type}'{keep};"


VIEWS = "\n".join(
    [
        "CREATE VIEW events AS SELECT run, ts, type, source, writer, n, attempt, data FROM store.all_events;",
        f"CREATE VIEW runs AS SELECT {', '.join(RUN_COLUMNS)} FROM store.run_rows;",
        # And one that a disk took, but said it did not, was written again: one of them is shown.
        f"""CREATE VIEW steps AS SELECT {", ".join(STEP_ROW)} FROM store.all_steps
        QUALIFY step IS NULL OR row_number() OVER (PARTITION BY run, step ORDER BY attempt DESC) = 1;""",
        _view(
            "gpu",
            "gpu.sampled",
            {
                "index": "INTEGER",
                "uuid": "VARCHAR",
                "name": "VARCHAR",
                "utilization_percent": "DOUBLE",
                "memory_used_gib": "DOUBLE",
                "memory_total_gib": "DOUBLE",
                "power_watts": "DOUBLE",
                "power_limit_watts": "DOUBLE",
                "temperature_c": "DOUBLE",
                "throttle_reasons": "JSON",
            },
        ),
        _view(
            "host",
            "host.sampled",
            {
                "cpu_percent": "DOUBLE",
                "rss_gib": "DOUBLE",
                "read_bytes": "BIGINT",
                "write_bytes": "BIGINT",
                "disk_free_gib": "DOUBLE",
                "memory_available_gib": "DOUBLE",
            },
        ),
        _view(
            "checkpoints",
            "checkpoint.saved",
            {
                "step": "BIGINT",
                "epoch": "BIGINT",
                "path": "VARCHAR",
                "kind": "VARCHAR",
                "bytes": "BIGINT",
                "sha256": "VARCHAR",
            },
            once=True,
        ),
        _view(
            "validation",
            "validation.measured",
            {
                "step": "BIGINT",
                "epoch": "BIGINT",
                "loss": "DOUBLE",
                "pictures": "BIGINT",
                "best": "BOOLEAN",
                "best_loss": "DOUBLE",
                "best_step": "BIGINT",
            },
            once=True,
        ),
        _view(
            "samples",
            "sample.saved",
            {
                "step": "BIGINT",
                "epoch": "BIGINT",
                "index": "INTEGER",
                "prompt": "VARCHAR",
                "seed": "BIGINT",
                "path": "VARCHAR",
            },
            once=True,
        ),
        _view(
            "stalls",
            "run.stalled",
            {
                "verdict": "VARCHAR",
                "evidence": "JSON",
                "resume_checkpoint": "VARCHAR",
                "resume_step": "BIGINT",
                "stacks": "VARCHAR",
            },
        ),
    ]
)
