"""The guarded SQL box: what it answers, and that nothing hostile gets past it."""

import json
import math
import os
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from cli_tools import call

from benchmarks.hostile_sql import KINDS, MOST_SECONDS, attack, make_outputs
from fluxcore.cli.out import table
from fluxcore.history import SqlRefused, connect, run_sql
from fluxcore.log import EventLog


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    folder = root / "a"
    folder.mkdir()
    with EventLog(folder, "trainer") as log:
        log.append(
            "config.saved", {"config": {"lora_name": "a", "concept_sentence": "ohwx", "base_model": "flux-mini"}}
        )
        log.append("run.titled", {"title": "it's “one”, with\nlines"})
        for step, loss in enumerate([0.5, math.nan, math.inf, -math.inf, 0.25], 1):
            log.append("train.step", {"step": step, "total_steps": 5, "epoch": 1, "loss": loss}, attempt=1)
    return root


WRONG = [
    "",
    "   ",
    "-- nothing",
    "nonsense",
    "SELECT",
    "SELECT nothing FROM runs",
    "SELECT * FROM nowhere",
    "SELECT 'a",
]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_outputs(tmp_path_factory.mktemp("target") / "outputs")


@pytest.mark.parametrize(
    "kind, statement", [(kind, statement) for kind, statements in KINDS.items() for statement in statements]
)
def test_nothing_hostile_gets_through(target, kind, statement):
    assert attack(target, statement, MOST_SECONDS.get(kind, 10.0)) == ""


@pytest.mark.parametrize("statement", WRONG)
def test_what_is_no_statement_is_refused_in_a_sentence(outputs, statement):
    with pytest.raises(SqlRefused) as refused:
        run_sql(outputs, statement)
    assert str(refused.value) and "\n" not in str(refused.value)


def test_the_title_is_as_it_was_written(outputs):
    assert run_sql(outputs, "SELECT run, title FROM runs").rows == [["a", "it's “one”, with\nlines"]]


def test_a_statement_can_be_cancelled(outputs):
    cancel = threading.Event()
    timer = threading.Timer(0.7, cancel.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(SqlRefused, match="was cancelled"):
        run_sql(outputs, KINDS["time"][0], cancel=cancel)
    assert time.monotonic() - start < 5
    timer.join()
    assert run_sql(outputs, "SELECT 1", cancel=threading.Event()).rows == [[1]]


def test_answers_keep_their_kinds(outputs):
    result = run_sql(
        outputs, "SELECT run, step, loss, ts, [1, 2] AS l, {'a': 1.5} AS s, NULL AS n FROM steps ORDER BY step"
    )
    assert result.columns == ["run", "step", "loss", "ts", "l", "s", "n"]
    assert result.types[:4] == ["VARCHAR", "BIGINT", "DOUBLE", "TIMESTAMP"]
    losses = [row[2] for row in result.rows]
    assert losses[0] == 0.5 and math.isnan(losses[1]) and losses[2:4] == [math.inf, -math.inf]
    assert isinstance(result.rows[0][3], datetime) and result.rows[0][4:] == [[1, 2], {"a": 1.5}, None]


def test_odd_values(outputs):
    result = run_sql(
        outputs,
        "SELECT now(), 170141183460469231731687303715884105727::HUGEINT, DATE '2026-01-02', INTERVAL 1 DAY, 'ab'::BLOB, "
        "map {1: 2}, '00000000-0000-0000-0000-000000000001'::UUID, config, true FROM runs -- and a comment",
    )
    row = result.rows[0]
    assert isinstance(row[0], datetime)
    assert row[1:7] == [
        "170141183460469231731687303715884105727", "2026-01-02", "1 day", "6162", {"1": 2},
        "00000000-0000-0000-0000-000000000001",
    ]  # fmt: skip
    assert row[7]["lora_name"] == "a" and row[8] is True


def test_rows_are_capped_aloud(outputs):
    result = run_sql(outputs, "SELECT * FROM range(6000)")
    assert len(result.rows) == 5000 and result.truncated
    assert not run_sql(outputs, "SELECT * FROM range(10)", max_rows=10).truncated


@pytest.mark.parametrize(
    "statement", ["SHOW TABLES", "DESCRIBE runs", "FROM runs", "EXPLAIN SELECT 1", "SUMMARIZE runs", "VALUES (1)"]
)
def test_looking_around_is_allowed(outputs, statement):
    assert run_sql(outputs, statement).rows


def test_new_events_are_seen_and_old_copies_go(tmp_path):
    (tmp_path / "b").mkdir()
    with EventLog(tmp_path / "b", "trainer") as log:
        for count in (1, 2, 3):
            log.append("train.step", {"step": count}, attempt=1)
            assert run_sql(tmp_path, "SELECT count(*) FROM steps").rows == [[count]]
            for copy in (tmp_path / ".history").iterdir():
                os.utime(copy, (0, 0))
    assert len(list((tmp_path / ".history").iterdir())) == 1


def test_a_torn_copy_is_no_danger_to_the_logs(tmp_path):
    (tmp_path / "b").mkdir()
    with EventLog(tmp_path / "b", "trainer") as log:
        log.append("train.step", {"step": 1}, attempt=1)
    run_sql(tmp_path, "SELECT 1")
    (copy,) = (tmp_path / ".history").iterdir()
    copy.write_bytes(b"torn")
    assert run_sql(tmp_path, "SELECT count(*) FROM steps").rows == [[1]]


def test_without_runs_or_a_folder_to_write_in(tmp_path):
    assert run_sql(tmp_path / "nowhere", "SELECT count(*) FROM runs").rows == [[0]]
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / ".history").write_text("in the way")
    assert run_sql(tmp_path, "SELECT count(*) FROM runs").rows == [[0]]


def test_a_kept_history_answers_too(outputs):
    with connect(outputs) as history:
        assert run_sql(outputs, "SELECT count(*) FROM steps", history=history).rows == [[5]]


def test_the_command_line(capsys, outputs):
    statement = "SELECT step, loss, ts FROM steps WHERE step < 4 ORDER BY step"
    rows = call(capsys, "sql", statement, "--format", "json", "--outputs", outputs).json()
    assert [row["loss"] for row in rows] == [0.5, "nan", "inf"]
    datetime.fromisoformat(rows[0]["ts"])
    lines = call(capsys, "sql", statement, "--format", "csv", "--outputs", outputs).out.splitlines()
    assert lines[0] == "step,loss,ts" and lines[1].startswith("1,0.5,")
    assert "step" in call(capsys, "sql", statement, "--outputs", outputs).out
    assert call(capsys, "sql", "SELECT 1 WHERE false", "--format", "json", "--outputs", outputs).json() == []
    assert json.loads(call(capsys, "sql", "SELECT config FROM runs", "--format", "json", "--outputs", outputs).out)
    refused = call(capsys, "sql", "DROP VIEW runs", "--outputs", outputs)
    assert refused.code == 65 and "only one SELECT" in refused.line
    assert call(capsys, "sql", "SELECT 1", "--format", "xml", "--outputs", outputs).code == 64
    capped = call(capsys, "sql", "FROM range(9)", "--max-rows", "3", "--outputs", outputs)
    assert capped.code == 0 and "first 3 rows" in capped.line


def test_what_a_terminal_has_no_room_for_is_shown_value_by_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "60")
    names = [f"column_{i}" for i in range(9)]
    table(names, [[0.123456, "\x1b[31mred", *range(7)], [None, "x" * 200, *range(7)]], records=True)
    first, second = capsys.readouterr().out.split("\n\n")
    assert "0.1235" in first and "\\x1b[31mred" in first and "\x1b[31m" not in first
    assert len(first.splitlines()) == len(second.splitlines()) == 9 and "…" in second


def test_an_object_has_each_name_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys, "sql", "SELECT 1 AS step, 2 AS step", "--format", "json", "--outputs", tmp_path)
    assert json.loads(ended.out) == [{"step": 1, "step_2": 2}]
    assert "no folder" in call(capsys, "sql", "FROM runs", "--outputs", tmp_path / "nowhere").err
