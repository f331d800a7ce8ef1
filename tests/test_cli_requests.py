"""`start`, `resume`, `stop` and `--wait` through a real runner, shim and process; the stub plays the trainer."""

import os
import signal

import pytest
from cli_tools import call, orders, pictures, run, served, spawn, state, until

from fluxcore.log import EventLog, read_events
from fluxcore.runs.supervision import runner_alive


@pytest.fixture
def outputs(tmp_path):
    with served(tmp_path / "outputs") as folder:
        yield folder


def draft(capsys, outputs, name="cat", **settings):
    given = [item for key, value in settings.items() for item in ("--set", f"{key}={value}")]
    answer = call(capsys, "new", name, "--images", pictures(outputs.parent / "p"), "--outputs", outputs, *given)
    assert answer.code == 0, answer.err


def types(outputs, name="cat"):
    return [event.type for event in read_events(outputs / name)]


def test_start_and_wait_to_completed(capsys, outputs):
    draft(capsys, outputs)
    answer = run("start", "cat", "--wait", "--outputs", outputs)
    assert answer.code == 0 and "cat is completed: 3 steps" in answer.err
    assert types(outputs).count("run.completed") == 1
    row = call(capsys, "status", "cat", "--json", "--outputs", outputs).json()[0]
    assert (row["state"], row["step"], row["attempts"]) == ("completed", 3, 1)


def test_without_wait_the_request_is_in_the_log_at_exit(capsys, outputs):
    draft(capsys, outputs)
    orders(outputs, "cat", steps=100, step_seconds=0.05)
    answer = run("start", "cat", "--outputs", outputs)
    assert answer.code == 0
    assert "run.requested" in types(outputs)
    assert runner_alive(outputs)
    assert call(capsys, "start", "cat", "--outputs", outputs).code == 64, "it is live"
    assert call(capsys, "resume", "cat", "--outputs", outputs).code == 64, "it is live"
    assert call(capsys, "delete", "cat", "--yes", "--outputs", outputs).code == 64, "it is live"
    assert run("stop", "cat", "--wait", "--outputs", outputs).code == 0
    assert state(outputs, "cat").state == "stopped"


def test_a_failure_that_names_the_resume_that_works_names_no_other(capsys, outputs):
    draft(capsys, outputs, auto_resume=0)
    orders(outputs, "cat", save_every=1, attempts={"1": {"exit_at": 2, "exit_code": 1}})
    answer = run("start", "cat", "--wait", "--outputs", outputs)
    assert f"it can go on from step 2: ./fluxgym resume cat --outputs {outputs}" in answer.err
    misfit = "training failed: its network_alpha is 8: resume with `--set network_alpha=8`, or start afresh"
    orders(outputs, "cat", exit_at=2, exit_code=2, say=misfit)
    answer = run("resume", "cat", "--wait", "--outputs", outputs)
    assert answer.code == 1 and answer.err.strip().endswith("`--set network_alpha=8`, or start afresh")


def test_failed_is_1_and_says_why(capsys, outputs):
    draft(capsys, outputs, auto_resume=0)
    orders(outputs, "cat", exit_at=2, exit_code=3, say="the picture p0.png is torn")
    answer = run("start", "cat", "--wait", "--outputs", outputs)
    assert answer.code == 1 and "failed at step 2" in answer.err


def test_stopped_is_3(capsys, outputs):
    draft(capsys, outputs)
    orders(outputs, "cat", steps=1000, step_seconds=0.02)
    waiting = spawn("start", "cat", "--wait", "--outputs", outputs)
    until(lambda: state(outputs, "cat").step >= 2)
    assert run("stop", "cat", "--outputs", outputs).code == 0
    _, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 3
    assert "it can go on from step" in err and "fluxgym resume cat" in err


def test_stalled_is_4(capsys, outputs):
    draft(capsys, outputs, auto_resume=0, stall_seconds=1, stop_grace_seconds=1)
    orders(outputs, "cat", hang_at=2)
    answer = run("start", "cat", "--wait", "--outputs", outputs)
    assert answer.code == 4 and "was stuck at step 2" in answer.err
    assert types(outputs)[-1] == "run.killed"


def test_waiting_goes_through_automatic_attempts(capsys, outputs):
    draft(capsys, outputs, auto_resume=2)
    orders(outputs, "cat", steps=6, save_every=2, attempts={"1": {"exit_at": 3}})
    answer = run("start", "cat", "--wait", "--outputs", outputs)
    assert answer.code == 0, answer.err
    assert "failed at step 3" in answer.err and "is completed: 6 steps" in answer.err
    assert len(state(outputs, "cat").attempts) == 2


def test_ctrl_c_leaves_the_run_alone(capsys, outputs):
    draft(capsys, outputs)
    orders(outputs, "cat", steps=1000, step_seconds=0.02)
    waiting = spawn("start", "cat", "--wait", "--outputs", outputs)
    until(lambda: state(outputs, "cat").step >= 2)
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 130 and "goes on" in err and "Traceback" not in err
    before = state(outputs, "cat").step
    until(lambda: state(outputs, "cat").step > before)
    assert run("stop", "cat", "--wait", "--outputs", outputs).code == 0


def test_a_runner_that_dies_while_we_wait_is_started_again(capsys, outputs):
    draft(capsys, outputs)
    orders(outputs, "cat", steps=400, step_seconds=0.02)
    waiting = spawn("start", "cat", "--wait", "--outputs", outputs)
    until(lambda: state(outputs, "cat").step >= 2)
    os.kill(runner_alive(outputs).pid, signal.SIGKILL)
    waiting.communicate(timeout=50)
    assert waiting.returncode == 0
    assert types(outputs).count("run.started") == 1 and types(outputs).count("run.completed") == 1


def test_resume(capsys, outputs):
    draft(capsys, outputs, auto_resume=0)
    refused = call(capsys, "resume", "cat", "--outputs", outputs)
    assert refused.code == 64 and "no complete checkpoint" in refused.line
    told = {"tell": [["dataset.changed", {"notice": "Other pictures.", "hint": "Take the old ones."}]]}
    orders(outputs, "cat", steps=6, save_every=2, attempts={"1": {"exit_at": 5}, "2": told})
    assert run("start", "cat", "--wait", "--outputs", outputs).code == 1
    again = call(capsys, "start", "cat", "--outputs", outputs)
    assert again.code == 64 and "--restart" in again.line
    missing = call(capsys, "resume", "cat", "--from", "cat-000009-state", "--outputs", outputs)
    assert missing.code == 64 and "cat-step00000004-state" in missing.line
    wrong = call(capsys, "resume", "cat", "--set", "learning_rat=3e-4", "--outputs", outputs)
    assert wrong.code == 64 and "did you mean learning_rate?" in wrong.line
    changed = ("--set", "learning_rate=3e-4", "--set", "stall_seconds=60")
    answer = run("resume", "cat", "--from", "cat-step00000002-state", *changed, "--wait", "--outputs", outputs)
    assert answer.code == 0, answer.err
    assert "cat: attempt 2 from step 2" in answer.err and "cat: Other pictures. Take the old ones." in answer.err
    assert "cat: failed at step" not in answer.err, "what the attempt before came to is no news"
    assert "queued train" not in answer.err and "starting train" not in answer.err
    assert "Other pictures. Take the old ones." in call(capsys, "status", "cat", "--outputs", outputs).out
    served = state(outputs, "cat").served_config(state(outputs, "cat").attempts[1])
    assert (served["learning_rate"], served["stall_seconds"], served["auto_resume"]) == ("3e-4", 60, 0)
    assert state(outputs, "cat").attempts[1].resume_step == 2


def test_checkpoints_marks_the_one_that_resume_takes(capsys, outputs):
    draft(capsys, outputs, auto_resume=0)
    orders(outputs, "cat", steps=6, save_every=2, exit_at=5)
    assert run("start", "cat", "--wait", "--outputs", outputs).code == 1
    (outputs / "cat" / "cat-step00000009-state").mkdir()
    rows = call(capsys, "checkpoints", "cat", "--json", "--outputs", outputs).json()
    marked = [row for row in rows if row["resume"]]
    assert [(row["name"], row["step"], row["complete"]) for row in marked] == [("cat-step00000004-state", 4, True)]
    torn = next(row for row in rows if row["name"] == "cat-step00000009-state")
    assert not torn["complete"] and torn["problem"]
    assert "← resume" in call(capsys, "checkpoints", "cat", "--outputs", outputs).out


def test_stop_of_a_draft_is_64(capsys, outputs):
    draft(capsys, outputs)
    answer = call(capsys, "stop", "cat", "--outputs", outputs)
    assert answer.code == 64 and "not running" in answer.line


def test_a_run_without_pictures_does_not_start(capsys, outputs):
    draft(capsys, outputs)
    for file in (outputs / "cat" / "dataset").iterdir():
        file.unlink()
    answer = call(capsys, "start", "cat", "--outputs", outputs)
    assert answer.code == 64 and "no pictures" in answer.line
    assert "run.requested" not in types(outputs)


def test_a_refused_request_ends_the_wait_with_64(capsys, outputs, monkeypatch):
    draft(capsys, outputs)
    monkeypatch.setattr("fluxcore.runs.supervision.ensure_runner", lambda outputs: refuse(outputs))

    def refuse(outputs):
        request = next(event for event in read_events(outputs / "cat") if event.type == "run.requested")
        with EventLog(outputs / "cat", "runner") as log:
            log.append("request.refused", {"request": request.id, "reason": "another came first"})

    answer = call(capsys, "start", "cat", "--wait", "--outputs", outputs)
    assert answer.code == 64 and "another came first" in answer.err


def test_a_second_runner_is_refused(outputs, capsys):
    draft(capsys, outputs)
    run("start", "cat", "--wait", "--outputs", outputs)
    second = run("runner", "--outputs", outputs)
    assert second.code == 64
    assert len(second.err.strip().splitlines()) == 1


def test_following_ends_with_the_run(capsys, outputs):
    draft(capsys, outputs)
    orders(outputs, "cat", steps=20, step_seconds=0.05)
    run("start", "cat", "--outputs", outputs)
    events = spawn("events", "cat", "--follow", "--type", "train.step", "--type", "run.completed", "--outputs", outputs)
    logs = spawn("logs", "cat", "--follow", "--outputs", outputs)
    out, _ = events.communicate(timeout=30)
    lines = out.splitlines()
    assert len(lines) == 21 and '"run.completed"' in lines[-1]
    assert logs.communicate(timeout=30)[0] == "stub trainer: ready\n"


def end(outputs, name, *events):
    """What the runner wrote of a started attempt, though none lives here."""
    saved = next(event for event in read_events(outputs / name) if event.type == "config.saved")
    with EventLog(outputs / name, "cli") as log:
        asked = log.append("run.requested", {"config": saved.id, "resume_from": None, "reason": "start"})
    with EventLog(outputs / name, "runner") as log:
        log.append("run.started", {"request": asked.id, "pid": 0}, attempt=1)
        for type, data in events:
            log.append(type, data, attempt=1)


def test_between_stalled_and_killed_the_folder_stays_and_stop_waits(capsys, outputs, monkeypatch):
    monkeypatch.setattr("fluxcore.runs.supervision.ensure_runner", lambda outputs: None)
    draft(capsys, outputs)
    end(outputs, "cat", ("run.stalled", {"verdict": "silent"}))
    for verb in ("delete", "start", "resume"):
        answer = call(capsys, verb, "cat", *(["--yes"] if verb == "delete" else []), "--outputs", outputs)
        assert answer.code == 64 and "being ended" in answer.line, verb
    pruned = call(capsys, "prune", "--older-than", "0h", "--yes", "--outputs", outputs)
    assert pruned.code == 0 and (outputs / "cat").is_dir()

    from fluxcore.cli.follow import wait_until_stopped
    from fluxcore.runs import RunFolder

    waits = []

    def kill(seconds):
        waits.append(seconds)
        with EventLog(outputs / "cat", "runner") as log:
            log.append("run.killed", {"pids": [], "survivors": []}, attempt=1)

    assert wait_until_stopped(RunFolder(outputs / "cat"), sleep=kill) == 0 and waits
    assert call(capsys, "delete", "cat", "--yes", "--outputs", outputs).code == 0


def test_stop_is_taken_while_a_kill_or_an_automatic_attempt_is_to_come(capsys, outputs, monkeypatch):
    monkeypatch.setattr("fluxcore.runs.supervision.ensure_runner", lambda outputs: None)
    point = {"resume_checkpoint": "cat-step00000004-state", "resume_step": 4}
    for name, event in (("cat", ("run.stalled", {"verdict": "silent"})), ("dog", ("run.failed", {"reason": "crash"}))):
        draft(capsys, outputs, name)
        end(outputs, name, (event[0], {**event[1], **point}))
        assert call(capsys, "stop", name, "--outputs", outputs).code == 0
        assert state(outputs, name).stop_requested
    again = call(capsys, "stop", "dog", "--outputs", outputs)
    assert again.code == 64 and "not running" in again.line, "nothing is to come any more"


def test_prune_leaves_out_what_it_can_not_read(capsys, outputs):
    for name in ("bad", "old"):
        draft(capsys, outputs, name)
    (outputs / "bad" / "events.jsonl").rename(outputs / "bad" / "aside")
    (outputs / "bad" / "events.jsonl").mkdir()
    answer = call(capsys, "prune", "--older-than", "0h", "--yes", "--outputs", outputs)
    assert answer.code == 0 and "left out: the log of bad" in answer.err
    assert (outputs / "bad").is_dir() and not (outputs / "old").exists()
