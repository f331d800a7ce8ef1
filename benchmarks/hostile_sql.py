"""`./fluxgym bench hostile-sql`: statements that try to write, to read files, to change settings, to take all memory or
all time. After each: nothing was written, no file of the machine was read, and the next question is answered.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fluxcore.history import SqlRefused, run_sql
from fluxcore.log import EventLog

WRITES = [
    "INSERT INTO runs VALUES (1)",
    "INSERT INTO store.run_rows(run) VALUES ('evil')",
    "WITH x AS (INSERT INTO store.run_rows(run) VALUES ('evil') RETURNING *) SELECT * FROM x",
    "WITH x AS (DELETE FROM store.event_rows RETURNING *) SELECT count(*) FROM x",
    "EXPLAIN ANALYZE WITH x AS (UPDATE store.run_rows SET title = 'evil' RETURNING *) SELECT * FROM x",
    "EXPLAIN ANALYZE DELETE FROM store.run_rows",
    "TRUNCATE store.event_rows",
    "ALTER TABLE store.run_rows ADD COLUMN evil INTEGER",
    "DROP VIEW runs",
    "DROP SCHEMA store CASCADE",
    "CREATE TABLE evil AS SELECT 1",
    "CREATE TEMP TABLE evil AS SELECT 1",
    "CREATE SEQUENCE evil",
    "CREATE OR REPLACE MACRO evil() AS 1",
    "CREATE SECRET evil (TYPE http, BEARER_TOKEN 'x')",
    "COMMENT ON TABLE store.run_rows IS 'evil'",
    "COPY runs TO 'evil.csv'",
    "COPY (SELECT 1) TO 'evil.parquet' (FORMAT parquet)",
    "COPY store.run_rows FROM '/etc/passwd'",
    "EXPORT DATABASE 'evil'",
    "IMPORT DATABASE 'evil'",
    "ATTACH 'evil.duckdb'",
    "ATTACH ':memory:' AS evil",
    "DETACH store",
    "USE memory",
    "CHECKPOINT",
    "VACUUM",
    "BEGIN",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "PREPARE evil AS SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW runs",
    "SELECT * FROM query('DROP VIEW runs')",
]
FILES = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_json('a/events.jsonl')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM parquet_scan('/tmp/x.parquet')",
    "SELECT * FROM read_parquet('http://127.0.0.1:9/x.parquet')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM sqlite_scan('/tmp/x.db', 'x')",
    "SELECT * FROM duckdb_secrets()",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SELECT getenv('HOME')",
    "SELECT * FROM question",
]
SETTINGS = [
    "SET enable_external_access = true",
    "SET GLOBAL enable_external_access = true",
    "SET lock_configuration = false",
    "SET memory_limit = '100GB'",
    "RESET memory_limit",
    "SET temp_directory = '/tmp'",
    "SET threads = 64",
    "SET allowed_directories = ['/']",
]
MEMORY = [
    "SELECT repeat('x', 3000000000)",
    "SELECT length(repeat('x', 1900000000))",
    "SELECT printf('%2000000000d', 1)",
    "SELECT list_sum(range(1000000000))",
    "SELECT array_agg(repeat('x', 1000000)) FROM range(100000)",
    "SELECT repeat('x', 100000) FROM range(5000)",
]
TIME = [
    "SELECT count(*) FROM range(1000000000000)",
    "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range + b.range = 7",
    "SELECT levenshtein(repeat('a', 200000), repeat('b', 200000))",
    "WITH RECURSIVE t AS (SELECT 1 AS a UNION ALL SELECT a FROM t) SELECT count(*) FROM t",
]
KINDS = {"writing": WRITES, "files": FILES, "settings": SETTINGS, "memory": MEMORY, "time": TIME}
MOST_SECONDS = {"memory": 5.0, "time": 1.0}


def fingerprint(root: Path) -> dict[str, str]:
    """Every file of a folder outside `.history`, with its content's hash."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and ".history" not in path.parts]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def attack(outputs: Path, statement: str, seconds: float = 10.0) -> str:
    """Send one statement, then a harmless one; "" where it was refused in a sentence, else what it got through with."""
    before, started = fingerprint(outputs), time.monotonic()
    try:
        result = run_sql(outputs, statement, seconds=seconds)
        return f"answered with {str(result.rows)[:60]}"
    except SqlRefused as refused:
        if not str(refused) or "\n" in str(refused):
            return f"refused without a sentence: {str(refused)!r}"
    finally:
        took = time.monotonic() - started
    if took > seconds + 9:
        return f"refused after {took:.0f} s only"
    if fingerprint(outputs) != before or list(outputs.rglob("evil*")) or list(Path().glob("evil*")):
        return "a file was changed"
    if run_sql(outputs, "SELECT run FROM runs").rows != [["a"]]:
        return "the next question was not answered"
    return ""


def make_outputs(root: Path) -> Path:
    """An outputs folder with one run `a`."""
    (root / "a").mkdir(parents=True)
    with EventLog(root / "a", "trainer") as log:
        log.append("config.saved", {"config": {"lora_name": "a", "base_model": "flux-mini"}})
        log.append("train.step", {"step": 1, "total_steps": 5, "epoch": 1, "loss": 0.5}, attempt=1)
    return root


def main() -> int:
    """The command. Returns 1 where any statement got through."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    table = Table(title="Hostile statements at the SQL box")
    for column in ("kind", "statements", "got through", "seconds"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    through = 0
    with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as place:
        os.chdir(place)
        outputs = make_outputs(Path(place) / "outputs")
        for kind, statements in KINDS.items():
            started, bad = time.monotonic(), 0
            for statement in statements:
                if found := attack(outputs, statement, MOST_SECONDS.get(kind, 10.0)):
                    bad += 1
                    print(f"{statement}: {found}", file=sys.stderr)
            through += bad
            table.add_row(kind, str(len(statements)), str(bad), f"{time.monotonic() - started:.0f}")
        table.add_row("all", str(sum(map(len, KINDS.values()))), str(through), "")
    Console(width=100).print(table)
    return 1 if through else 0


if __name__ == "__main__":
    sys.exit(main())
