"""Work beside the trainings: one at a time, told of as it goes, and never said to run when its process is gone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from fluxcore.errors import UserError
from fluxcore.jobs import forget_job, read_job, start_job, stop_job, working
from tests.place import wait_until


def state(outputs: Path, name: str = "test-a") -> str | None:
    job = read_job(outputs, name)
    return job.state if job else None


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that says its progress and then does what its argument says."""
    (tmp_path / "job_of_test.py").write_text(
        "import sys, time, pathlib\n"
        "from fluxcore.errors import UserError\n"
        "from fluxcore.jobs import working\n"
        "with working(pathlib.Path(sys.argv[2])) as say:\n"
        "    say.unit = 'things'\n"
        "    say(1, 4)\n"
        "    if sys.argv[3] == 'wait': time.sleep(60)\n"
        "    if sys.argv[3] == 'refuse': raise UserError('make room')\n"
        "    if sys.argv[3] == 'break': 1 / 0\n"
        "    say(4, 4)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[1]}")
    return "job_of_test"


def test_a_job_tells_how_far_it_is_and_what_became_of_it(tmp_path, module):
    for what, ends, says in (
        ("go", "done", ""),
        ("refuse", "failed", "make room"),
        ("break", "failed", "ZeroDivision"),
    ):
        start_job(tmp_path, "test-a", module, [what])
        assert wait_until(lambda: state(tmp_path) not in (None, "running"))
        job = read_job(tmp_path, "test-a")
        assert (job.state, job.unit) == (ends, "things") and says in job.message
        assert job.done == (4 if what == "go" else 1)
    forget_job(tmp_path, "test-a")
    assert read_job(tmp_path, "test-a") is None


def test_a_job_is_started_once_stopped_and_missed(tmp_path, module):
    start_job(tmp_path, "test-a", module, ["wait"])
    assert wait_until(lambda: (job := read_job(tmp_path, "test-a")) and job.done == 1)
    first = read_job(tmp_path, "test-a").process
    start_job(tmp_path, "test-a", module, ["wait"])
    assert read_job(tmp_path, "test-a").process == first, "it runs already"
    stop_job(tmp_path, "test-a")
    assert wait_until(lambda: state(tmp_path) == "stopped")
    start_job(tmp_path, "test-a", module, ["wait"])
    assert wait_until(lambda: (job := read_job(tmp_path, "test-a")) and job.done == 1)
    os.kill(read_job(tmp_path, "test-a").process["pid"], signal.SIGKILL)
    assert wait_until(lambda: state(tmp_path) == "failed")
    assert "begin it again" in read_job(tmp_path, "test-a").message


def test_a_job_that_ends_while_it_is_stopped_has_ended(tmp_path, module, monkeypatch):
    def gone(pid, number):
        raise ProcessLookupError

    start_job(tmp_path, "test-a", module, ["wait"])
    assert wait_until(lambda: (job := read_job(tmp_path, "test-a")) and job.done == 1)
    with monkeypatch.context() as patch:
        patch.setattr("fluxcore.jobs.os.kill", gone)
        stop_job(tmp_path, "test-a")
    stop_job(tmp_path, "test-a")
    assert wait_until(lambda: state(tmp_path) == "stopped")


def test_a_name_leads_nowhere_else(tmp_path):
    for name in ("../a", "a", "test-../b", ""):
        with pytest.raises(UserError):
            read_job(tmp_path, name)


def test_progress_is_written_rarely(tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    written = []
    monkeypatch.setattr("fluxcore.jobs._write", lambda file, job: written.append(job))
    begun = time.monotonic()
    try:
        with working(tmp_path / "test-a.json") as say:
            for i in range(50_000):
                say(i, 50_000)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert len(written) <= 4 + 2 * (time.monotonic() - begun) and written[-1].state == "done"
