"""`status`, `logs`, `events`, `checkpoints` over logs that were written here."""

import json

import pytest
from cli_tools import call

from fluxcore import __version__
from fluxcore.history.views import RUN_COLUMNS
from fluxcore.log import EventLog


@pytest.fixture
def outputs(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    with EventLog(folder, "cli") as log:
        config = log.append("config.saved", {"config": {"lora_name": "a", "base_model": "flux-mini"}})
        request = log.append("run.requested", {"config": config.id, "resume_from": None})
        log.append("run.started", {"request": request.id, "pid": 0}, attempt=1)
        log.append("train.step", {"step": 1, "total_steps": 4, "epoch": 1, "loss": float("nan")}, attempt=1)
        log.append("run.failed", {"reason": "nan_loss", "hint": "lower the learning rate", "exit_code": 5}, attempt=1)
    (folder / "train.log").write_bytes(b"one\n\xff\xfetwo\n")
    return tmp_path


def test_status_json_is_the_runs_view(capsys, outputs):
    rows = call(capsys, "status", "--json", "--outputs", outputs).json()
    assert list(rows[0]) == list(RUN_COLUMNS)
    from_sql = call(capsys, "sql", "SELECT * FROM runs", "--format", "json", "--outputs", outputs).json()
    assert rows == from_sql
    assert (rows[0]["state"], rows[0]["loss"], rows[0]["failures"]) == ("failed", "nan", 1)
    assert rows[0]["created"].endswith("Z")


def test_status_for_a_person(capsys, outputs):
    assert "failed" in call(capsys, "status", "--outputs", outputs).out
    stacks = outputs / "a" / ".attempts" / "0002" / "stacks.txt"
    stacks.parent.mkdir(parents=True)
    stacks.write_text("Thread 1: stuck\n")
    told = call(capsys, "status", "a", "--outputs", outputs).out
    assert "lower the learning rate" in told and f"{stacks} (of attempt 2)" in told
    assert "It failed at step 1 of 4 (nan_loss)." in told and "start a --restart" in told and "--set KEY=VALUE" in told
    assert "no runs" in call(capsys, "status", "--outputs", outputs / "none").out
    assert call(capsys, "status", "--json", "--outputs", outputs / "none").json() == []


def test_a_run_whose_process_is_gone_and_that_nobody_supervises_is_lost(capsys, tmp_path):
    folder = tmp_path / "b"
    folder.mkdir()
    with EventLog(folder, "cli") as log:
        config = log.append("config.saved", {"config": {"lora_name": "b"}})
        request = log.append("run.requested", {"config": config.id, "resume_from": None})
        log.append("run.started", {"request": request.id, "pid": 4_000_000, "create_time": 1.0}, attempt=1)
    assert call(capsys, "status", "b", "--json", "--outputs", tmp_path).json()[0]["state"] == "lost"


def test_events_are_lines_of_json(capsys, outputs):
    lines = call(capsys, "events", "a", "--outputs", outputs).out.splitlines()
    assert [json.loads(line)["type"] for line in lines][-1] == "run.failed"
    only = call(capsys, "events", "a", "--type", "train.step", "--outputs", outputs).out
    assert json.loads(only)["data"]["loss"] == "nan"
    assert call(capsys, "events", "a", "--follow", "--outputs", outputs).out.count("\n") == len(lines)


def test_logs_are_given_as_they_are(capfdbinary, outputs):
    from fluxcore.cli.main import main

    assert main(["logs", "a", "--outputs", str(outputs)]) == 0
    assert capfdbinary.readouterr().out == b"one\n\xff\xfetwo\n"
    (outputs / "a" / "train.log").unlink()
    assert main(["logs", "a", "--outputs", str(outputs)]) == 0


def test_a_torn_log_is_read_as_far_as_it_goes(capsys, outputs):
    with open(outputs / "a" / "events.jsonl", "ab") as file:
        file.write(b'\0\0{"torn\n[]\n{"v":1,"ts"')
    assert call(capsys, "status", "a", "--json", "--outputs", outputs).json()[0]["state"] == "failed"
    assert call(capsys, "checkpoints", "a", "--json", "--outputs", outputs).json() == []


def test_a_run_that_begins_afresh_does_not_show_what_the_attempt_before_came_to(capsys, outputs):
    with EventLog(outputs / "a", "cli") as log:
        log.append("run.requested", {"config": "", "resume_from": None, "reason": "restart"})
    told = call(capsys, "status", "a", "--outputs", outputs).out
    assert "queued" in told and "begins at step" in told and "\nloss" not in told
    assert "1/4" not in call(capsys, "status", "--outputs", outputs).out


def test_a_mistyped_type_or_folder_is_said(capsys, outputs):
    answer = call(capsys, "events", "a", "--type", "train.stepp", "--outputs", outputs)
    assert answer.code == 0 and answer.out == "" and "did you mean train.step?" in answer.err
    assert "there is no such folder" in call(capsys, "status", "--outputs", outputs / "none").out


def test_the_version_is_told(capsys):
    assert call(capsys, "--version").out == f"fluxgym {__version__}\n"
