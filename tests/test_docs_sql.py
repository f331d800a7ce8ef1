"""docs/sql.md is true: its columns are the views', its statements run, raw logs open in a plain DuckDB."""

import re

import duckdb
import pytest
from cli_tools import ROOT, call

from fluxcore.history import connect
from fluxcore.log import EventLog

TEXT = (ROOT / "docs" / "sql.md").read_text()


@pytest.fixture
def outputs(tmp_path):
    for name in ("demo", "b"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        with EventLog(tmp_path / "outputs" / name, "trainer") as log:
            log.append("config.saved", {"config": {"lora_name": name}})
            for step in (1, 2):
                log.append("train.step", {"step": step, "epoch": 1, "loss": 0.5}, attempt=1)
    return tmp_path / "outputs"


def test_the_table_of_views_is_complete(outputs):
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", TEXT, re.M)
    with connect(outputs) as history:
        views = {row["name"] for row in history.query("SHOW TABLES")}
        assert {name for name, _ in rows} == views
        for name, columns in rows:
            assert re.findall(r"`(\w+)`", columns) == [row["column_name"] for row in history.query(f"DESCRIBE {name}")]


def test_the_examples_run(capsys, outputs):
    examples = re.findall(r'^    \./fluxgym sql "(.+?)"', TEXT, re.M)
    assert len(examples) == 3
    for statement in examples:
        assert call(capsys, "sql", statement, "--outputs", outputs).code == 0


def test_the_raw_logs_open_in_a_plain_duckdb(outputs, monkeypatch):
    with open(outputs / "b" / "events.jsonl", "ab") as file:
        file.write(b'{"v":1,"ts":5,"type":"train.step"}\n{"torn')
    (outputs / "b").rename(outputs / "c")  # a run is its folder, not what its lines say
    monkeypatch.chdir(outputs.parent)
    statement, export, together = re.findall(r"```sql\n(.+?)```", TEXT, re.S)
    example = re.search(r"Then, for example: `(.+?)`", TEXT)[1]
    with duckdb.connect() as shell:
        shell.execute(statement)
        assert sorted(shell.execute(example).fetchall()) == [("c", 2), ("demo", 2)]
        assert shell.execute("SELECT count(*) FROM events").fetchone() == (6,)
        shell.execute(export)
    with duckdb.connect() as elsewhere:  # another machine has only the file
        assert elsewhere.execute(together).fetchall() == [
            ("pod-17.parquet", "c", 2, 0.5),
            ("pod-17.parquet", "demo", 2, 0.5),
        ]
