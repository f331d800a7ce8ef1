"""The library's front door: the seed's functions over the same log, without torch or Streamlit."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from cli_tools import ROOT, STUB, orders, pictures, served, state, until

import fluxcore
from fluxcore.log import EventLog, format_ts, read_events
from fluxcore.runs.processes import boot_id


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("FLUXGYM_TRAINER", STUB)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with served(tmp_path / "outputs") as folder:
        monkeypatch.setenv("FLUXGYM_OUTPUTS", str(folder))
        yield folder


def test_importing_it_is_light():
    code = (
        "import sys, fluxcore; assert set(fluxcore.__all__) <= set(dir(fluxcore));"
        "heavy = ('torch', 'streamlit', 'duckdb', 'pandas', 'pydantic'); assert not set(heavy) & set(sys.modules);"
        "[getattr(fluxcore, name) for name in fluxcore.__all__]; assert not {'torch', 'streamlit'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError):
        fluxcore.no_such_thing  # noqa: B018


def test_start_training_to_the_end(outputs, tmp_path, monkeypatch):
    pictures(tmp_path / "p")
    monkeypatch.setenv("HOME", str(tmp_path))
    session = fluxcore.start_training("cat", images="~/p", trigger="ohwx cat", max_train_epochs=3)
    assert (session["lora_name"], session["status"], session["epochs"]) == ("cat", "running", 3)
    until(lambda: state(outputs, "cat").state == "completed")
    (recent,) = fluxcore.get_active_trainings()
    assert (recent["status"], recent["state"], recent["step"]) == ("recent", "completed", 3)
    assert {event.source for event in read_events(outputs / "cat") if event.type == "run.requested"} == {"api"}
    shown = fluxcore.display_active_sessions()
    assert shown.startswith("### 🔄 Active Training Sessions\n\n🔵 **cat** - Completed\n")
    for line in ("   - Started: 20", "   - Epochs: 3", "   - Checkpointing: ✅", "   - Monitoring: ✅"):
        assert line in shown


def test_a_live_run_is_green_and_monitored_until_that_is_switched_off(outputs, tmp_path):
    fluxcore.save_training_state("cat", {"max_train_epochs": 2})
    pictures(outputs / "cat" / "dataset")
    orders(outputs, "cat", steps=1000, step_seconds=0.02)
    fluxcore.start_training("cat")
    until(lambda: state(outputs, "cat").state == "running")
    assert "🟢 **cat** - Running" in fluxcore.display_active_sessions()
    status = fluxcore.get_monitor_status("cat")
    assert status["running"] and status["pid"] and status["log"] == outputs / "cat" / "monitor.log"
    until(lambda: fluxcore.get_monitor_status("cat")["lines"])
    stopped = fluxcore.stop_monitor("cat")
    assert not stopped["running"] and not stopped["enabled"] and stopped["pid"] is None
    assert state(outputs, "cat").state == "running", "the training goes on"
    with pytest.raises(fluxcore.UserError, match="already"):
        fluxcore.start_training("cat")
    from fluxcore.runs import request_stop

    request_stop(outputs, "cat", "api")
    until(lambda: state(outputs, "cat").state == "stopped")
    checkpoint = state(outputs, "cat").resume_checkpoint
    assert checkpoint
    orders(outputs, "cat", steps=state(outputs, "cat").step + 2)
    fluxcore.start_training("cat", resume_from_checkpoint=checkpoint, max_train_steps=2000)
    until(lambda: state(outputs, "cat").state == "completed")


def test_a_stale_monitor_pid_misleads_nobody(tmp_path):
    (tmp_path / "cat").mkdir()
    with EventLog(tmp_path / "cat", "cli") as log:
        config = log.append("config.saved", {"config": {"lora_name": "cat"}})
        request = log.append("run.requested", {"config": config.id, "resume_from": None})
    with EventLog(tmp_path / "cat", "runner") as log:
        log.append("run.started", {"request": request.id, "pid": os.getpid(), "create_time": 1.0}, attempt=1)
    # What a runner that was killed leaves; its pid is another process's by now, and that one lives.
    (tmp_path / "cat" / "monitor.pid").write_text(f"{os.getpid()}\n")
    about = {"pid": os.getpid(), "create_time": 1.0, "start_ticks": 1, "boot_id": boot_id(), "version": "0"}
    (tmp_path / ".runner.json").write_text(json.dumps(about))
    status = fluxcore.get_monitor_status("cat", outputs=tmp_path)
    assert status["enabled"] and not status["running"] and status["pid"] is None


def test_saved_settings_come_back(outputs):
    file = fluxcore.save_training_state(
        "cat", {"network_dim": 7, "concept_sentence": "ohwx", "status": "x", "timestamp": 1}
    )
    assert file == outputs / "cat" / "ui_state.json" and file.is_file()
    fluxcore.save_training_state("cat", {"seed": 5})
    loaded = fluxcore.load_training_state("cat")
    assert (loaded["network_dim"], loaded["seed"], loaded["concept_sentence"], loaded["status"]) == (
        7,
        5,
        "ohwx",
        "draft",
    )
    assert abs(loaded["timestamp"] - datetime.now(UTC).timestamp()) < 60
    form = fluxcore.restore_ui_state("cat")
    assert set(loaded) - set(form) == {"timestamp", "status"}
    file.unlink()
    assert fluxcore.load_training_state("cat")["network_dim"] == 7, "the log is the truth, the file is derived"


def test_what_can_not_be_done_is_a_sentence(outputs, tmp_path):
    with pytest.raises(fluxcore.UserError, match="no run"):
        fluxcore.load_training_state("nobody")
    with pytest.raises(fluxcore.UserError, match="pictures"):
        fluxcore.start_training("cat")
    with pytest.raises(fluxcore.UserError, match="not a setting"):
        fluxcore.start_training("cat", images=pictures(tmp_path / "p"), nonsense=1)
    with pytest.raises(fluxcore.UserError, match="name"):
        fluxcore.save_training_state("../cat", {})
    with pytest.raises(fluxcore.UserError, match="nonsense is not a setting"):
        fluxcore.save_training_state("cat", {"nonsense": 1})
    assert [path.name for path in outputs.iterdir() if not path.name.startswith(".")] == []


def test_sessions_are_the_live_ones_then_those_of_a_day(tmp_path):
    assert fluxcore.display_active_sessions(outputs=tmp_path) == "No active training sessions."

    def run(name, hours, *, ended):
        (tmp_path / name).mkdir()
        moment = format_ts(datetime.now(UTC) - timedelta(hours=hours))
        with EventLog(tmp_path / name, "runner", now=lambda: moment) as log:
            request = log.append("run.requested", {"config": "", "resume_from": None})
            log.append("run.started", {"request": request.id}, attempt=1)
            if ended:
                log.append("run.completed", {"steps": 1}, attempt=1)

    run("yesterday", 30, ended=True)
    run("today", 20, ended=True)
    run("now", 40, ended=False)
    sessions = fluxcore.get_active_trainings(outputs=tmp_path)
    assert [(session["lora_name"], session["status"]) for session in sessions] == [
        ("now", "running"),
        ("today", "recent"),
    ]
