"""One run whose log can't be read (here: a folder lies in its place) hides no other run, and is named."""

from __future__ import annotations

import os

import pytest
from cli_tools import call

import fluxcore
from fluxcore.history import connect
from fluxcore.runs import RunError, entry_names, free_run_name, list_run_folders, load_all, load_run
from studio.live import LiveRuns
from tests.fake_runs import FakeRun


@pytest.fixture
def outputs(tmp_path):
    """`broken` comes before `good` by name, and one of its two files can be read."""
    for name in ("broken", "good"):
        FakeRun(tmp_path, name).start(pid=1, create_time=1)
    spoil(tmp_path)
    return tmp_path


def spoil(outputs):
    log = outputs / "broken" / "events.jsonl"
    os.rename(log, outputs / "broken" / "aside")
    log.mkdir()


def mend(outputs):
    log = outputs / "broken" / "events.jsonl"
    log.rmdir()
    os.rename(outputs / "broken" / "aside", log)


def test_all_runs_are_listed_and_the_broken_one_is_named(outputs):
    assert [folder.name for folder in list_run_folders(outputs)] == ["broken", "good"]
    states, problems = load_all(outputs)
    assert [state.name for state in states] == ["good"]
    assert [str(problem) for problem in problems] == [
        "the log of broken can't be read (Is a directory); mend it or move its folder away"
    ]
    with pytest.raises(RunError, match="the log of broken can't be read"):
        load_run(outputs, "broken")


def test_status_and_sql_go_on_without_it(outputs, capsys):
    answer = call(capsys, "status", "--json", "--outputs", outputs)
    assert answer.code == 0 and [row["run"] for row in answer.json()] == ["good"]
    assert answer.line.startswith("fluxgym: left out: the log of broken")
    for _ in range(2):  # a kept copy of the history must not make it silent
        answer = call(capsys, "sql", "SELECT run FROM runs", "--format", "json", "--outputs", outputs)
        assert answer.json() == [{"run": "good"}] and "left out: the log of broken" in answer.line
    mend(outputs)
    answer = call(capsys, "sql", "SELECT run FROM runs", "--format", "json", "--outputs", outputs)
    assert answer.json() == [{"run": "broken"}, {"run": "good"}] and not answer.err


def test_the_library_warns(outputs):
    with pytest.warns(UserWarning, match="the log of broken can't be read"):
        (session,) = fluxcore.get_active_trainings(outputs=outputs)
    assert session["lora_name"] == "good"


def test_the_history_loses_no_event_of_the_others(tmp_path):
    runs = {name: FakeRun(tmp_path, name) for name in ("aardvark", "broken")}
    for run in runs.values():
        run.start(pid=1, create_time=1)
    count = "SELECT run, count(*) AS n FROM events GROUP BY run ORDER BY run"
    with connect(tmp_path) as history:
        before = {row["run"]: row["n"] for row in history.query(count)}
        runs["aardvark"].steps(3)
        runs["broken"].steps(3)
        (tmp_path / "broken" / "events.other.jsonl").mkdir()
        assert history.refresh() and list(history.unreadable) == ["broken"]
        assert {row["run"]: row["n"] for row in history.query(count)} == {"aardvark": before["aardvark"] + 3}
        (tmp_path / "broken" / "events.other.jsonl").rmdir()
        assert history.refresh() and not history.unreadable
        assert {row["run"]: row["n"] for row in history.query(count)} == {run: n + 3 for run, n in before.items()}


def test_the_app_shows_what_it_knew_and_says_so(outputs):
    runs = LiveRuns(outputs)
    shown = {run.name: run for run in runs.all()}
    assert shown["good"].state.state == "running" and not shown["good"].trouble
    assert shown["broken"].state.state == "draft" and "can't be read" in shown["broken"].trouble
    mend(outputs)
    runs.expire()
    shown = {run.name: run for run in runs.all()}
    assert shown["broken"].state.state == "running" and not shown["broken"].trouble
    spoil(outputs)
    runs.expire()
    shown = {run.name: run for run in runs.all()}
    assert shown["broken"].state.state == "running" and "can't be read" in shown["broken"].trouble


def test_an_outputs_folder_that_cannot_be_read_is_a_sentence(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    assert entry_names(tmp_path / "none") == []
    monkeypatch.setattr("fluxcore.runs.files.os.scandir", refused)
    with pytest.raises(RunError, match="can't be read \\(Permission denied\\)"):
        list_run_folders(tmp_path)


def test_a_free_name_is_a_valid_one(tmp_path):
    (tmp_path / "Cat").touch()
    (tmp_path / "cat-2").mkdir()
    assert free_run_name(tmp_path, "cat") == free_run_name(tmp_path, "cat-2") == "cat-3"
    assert free_run_name(tmp_path, "dog-2") == "dog-2"
    (tmp_path / "dog-2").mkdir()
    assert free_run_name(tmp_path, "dog-2") == "dog-2-2", "there is no dog that it were the second of"
    (tmp_path / ("x" * 64)).mkdir()
    assert free_run_name(tmp_path, "x" * 64) == "x" * 62 + "-2"
