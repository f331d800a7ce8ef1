"""The shim: writes the trainer down before it starts, its exit after it ended, and serves an attempt once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fluxcore.runs import RunFolder
from fluxcore.runs.outlook import evidence_words
from fluxcore.runs.processes import Identity, identify, is_alive, read_process
from runner.executor import SHIM, Launch, LocalExecutor, Record
from runner.shim import CLAIMED, claim
from tests.place import wait_until


def start_shim(folder: Path, *argv: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    log = folder / "train.log"
    folder.mkdir(parents=True, exist_ok=True)
    order = {"folder": str(folder / "0001"), "argv": list(argv), "cwd": "/", "env": env or {}, "log": str(log)}
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(SHIM), json.dumps(order)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "0001" / name).read_text())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys; sys.exit(7)", (7, None)),
        ("import os; os.kill(os.getpid(), 9)", (137, "SIGKILL")),
        ("import os; os.abort()", (134, "SIGABRT")),
        ("pass", (0, None)),
    ],
)
def test_the_exit_is_written_down(tmp_path: Path, code: str, expected: tuple[int, str | None]) -> None:
    assert start_shim(tmp_path, sys.executable, "-c", code).wait(10) == 0
    ended = read(tmp_path, "exit.json")
    assert (ended["exit_code"], ended["signal"]) == expected
    assert ended["seconds"] >= 0 and ended["oom_kills"] == 0


def test_the_trainer_is_written_down_before_it_starts(tmp_path: Path) -> None:
    code = f"import os; print(os.path.exists({str(tmp_path / '0001' / 'process.json')!r}), os.environ['MARK'])"
    start_shim(tmp_path, sys.executable, "-c", code, env={"MARK": "here"}).wait(10)
    assert (tmp_path / "train.log").read_text() == "True here\n"


def test_two_shims_for_an_attempt_start_one_trainer(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'starts')!r}, 'a').write('x')"
    shims = [start_shim(tmp_path, sys.executable, "-c", code) for _ in range(5)]
    codes = sorted(shim.wait(10) for shim in shims)
    assert codes == [0, CLAIMED, CLAIMED, CLAIMED, CLAIMED]
    assert (tmp_path / "starts").read_text() == "x"


def test_a_program_that_is_not_there_says_so_in_the_log(tmp_path: Path) -> None:
    start_shim(tmp_path, "/no/such/trainer").wait(10)
    assert read(tmp_path, "exit.json")["exit_code"] == 127
    assert "/no/such/trainer" in (tmp_path / "train.log").read_text()


def test_the_trainer_gets_default_signals_and_its_own_group(tmp_path: Path) -> None:
    code = (
        "import os, signal; print([signal.getsignal(s) == signal.SIG_DFL for s in (signal.SIGTERM, signal.SIGHUP)],"
        " os.getpgrp() == os.getpid())"
    )
    start_shim(tmp_path, sys.executable, "-c", code).wait(10)
    assert (tmp_path / "train.log").read_text() == "[True, True] True\n"


def test_term_and_hangup_do_not_end_the_shim_nor_its_trainer(tmp_path: Path) -> None:
    shim = start_shim(tmp_path, sys.executable, "-c", "import time; time.sleep(0.6)")
    wait_until(lambda: (tmp_path / "0001" / "process.json").exists())
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        shim.send_signal(number)
    assert shim.wait(10) == 0 and read(tmp_path, "exit.json")["exit_code"] == 0


def test_the_trainer_survives_the_kill_of_its_shim_and_can_be_told_from_another_process(tmp_path: Path) -> None:
    shim = start_shim(tmp_path, sys.executable, "-c", "import time; time.sleep(60)")
    process = wait_until(lambda: (tmp_path / "0001" / "process.json").exists() and read(tmp_path, "process.json"))
    trainer = Identity.parse(process)
    assert trainer is not None and process["shim"]["pid"] == shim.pid
    shim.kill()
    shim.wait(10)
    try:
        assert is_alive(trainer) and identify(trainer.pid) == trainer
        assert not is_alive(Identity(trainer.pid, trainer.create_time, trainer.boot_id, trainer.start_ticks + 1))
        assert not is_alive(Identity(trainer.pid, trainer.create_time, "another boot", trainer.start_ticks))
    finally:
        os.kill(trainer.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(trainer))
    assert not (tmp_path / "0001" / "exit.json").exists()


def test_it_starts_fast(tmp_path: Path) -> None:
    modules = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import runpy, sys; runpy.run_path({str(SHIM)!r}); print(len(sys.modules))"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert int(modules) < 120, "the standard library's light half is all that it may import"


def test_a_claim_is_never_seen_without_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append((tmp_path / "claim.json").exists()))
    assert claim(tmp_path)
    assert seen == [False], "it was there before it was whole"
    assert json.loads((tmp_path / "claim.json").read_text())["pid"] == os.getpid()
    assert not claim(tmp_path) and [file.name for file in tmp_path.iterdir()] == ["claim.json"]


def test_a_claim_without_hard_links_is_still_had_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert claim(tmp_path) and not claim(tmp_path)
    assert json.loads((tmp_path / "claim.json").read_text())["pid"] == os.getpid()
    assert [file.name for file in tmp_path.iterdir()] == ["claim.json"]


def test_an_attempt_that_the_runner_gave_up_is_served_by_no_late_shim(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "cat")
    executor = LocalExecutor()
    assert executor.give_up(folder, 1) and executor.look(folder, 1) == Record(claimed=True, given_up=True)
    place = folder.attempt(1)
    order = {"folder": str(place), "argv": [sys.executable, "-c", ""], "cwd": "/", "env": {}, "log": os.devnull}
    late = subprocess.run([sys.executable, "-I", "-S", str(SHIM), json.dumps(order)])
    assert late.returncode == CLAIMED and not (place / "process.json").exists()
    assert claim(folder.attempt(2)) and not executor.give_up(folder, 2), "a shim came first"


def test_nothing_of_an_attempt_is_remembered_once_its_exit_is_known(tmp_path: Path) -> None:
    """A runner lives for months."""
    folder = RunFolder(tmp_path / "cat")
    executor = LocalExecutor()
    folder.path.mkdir()
    executor.spawn(Launch(folder, 1, [sys.executable, "-c", "input()"]))
    executor.spawn(Launch(folder, 2, [sys.executable, "-c", "import time; time.sleep(60)"]))
    running = wait_until(lambda: (found := executor.look(folder, 2)).trainer and found)
    assert executor.activity(folder, 2, running) is not None and executor._usage
    assert executor.signal(running.trainer, signal.SIGKILL)
    ended = wait_until(lambda: (found := executor.look(folder, 2)).exit and found, 30)
    assert executor.activity(folder, 2, ended) is None, "nor does a shim that is not gone yet bring it back"
    wait_until(lambda: executor.look(folder, 1).exit)
    assert executor._usage == executor._started == {}


def test_a_trainer_that_is_held_is_seen_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "cat")
    folder.path.mkdir()
    executor = LocalExecutor()
    executor.spawn(Launch(folder, 1, [sys.executable, "-c", "import time; time.sleep(60)"]))
    record = wait_until(lambda: (found := executor.look(folder, 1)).trainer and found)
    try:
        for number, held in ((signal.SIGSTOP, True), (signal.SIGCONT, False)):
            executor.signal(record.trainer, number)
            assert wait_until(lambda held=held: executor.activity(folder, 1, record).stopped is held)
    finally:
        executor.signal(record.trainer, signal.SIGKILL)
        wait_until(lambda: (executor.reap(), not executor.alive(record.shim))[1])
    said = evidence_words({"seconds_without_progress": 11.0, "seconds_without_life": 9.0, "process_stopped": True})
    assert said.endswith("; no sign of life for 9 s; its process was stopped (SIGSTOP, or a debugger).")


def test_what_a_run_used_is_as_new_as_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which processes are a run's may be a second old, what they used may not: `cpu_percent` would be 0, then double."""
    monkeypatch.setattr("runner.executor.TABLE_SECONDS", 1e9)
    folder = RunFolder(tmp_path / "cat")
    folder.path.mkdir()
    executor = LocalExecutor()
    executor.spawn(Launch(folder, 1, [sys.executable, "-c", "while True: pass"]))
    record = wait_until(lambda: (found := executor.look(folder, 1)).trainer and found)
    try:
        before = executor.activity(folder, 1, record)
        assert before is not None

        def busy() -> float:
            row = read_process(record.trainer.pid)
            return row.cpu_seconds if row is not None and row.cpu_seconds > before.cpu_seconds + 0.05 else 0.0

        used = wait_until(busy)
        after = executor.activity(folder, 1, record)
        assert after is not None and after.cpu_seconds >= used
    finally:
        executor.signal(record.trainer, signal.SIGKILL)
        wait_until(lambda: (executor.reap(), not executor.alive(record.shim))[1])
