"""Threads that wait: one training spins, a second one beside it sleeps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fluxcore.training import launch
from fluxcore.training.threads import POLICY, choose_waiting

ASK = f"import os; from pathlib import Path; from fluxcore.training.threads import *; choose_waiting(Path({{!r}})); print(os.environ.get({POLICY!r}))"


def beside(lock: Path) -> str:
    """What another process chooses now."""
    return subprocess.run(
        [sys.executable, "-c", ASK.format(str(lock))], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "")  # so that it is put back whatever a test sets
    monkeypatch.delenv(POLICY)


def test_one_spins_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "spins"
    held = choose_waiting(lock)
    assert held is not None and POLICY not in os.environ
    assert beside(lock) == "PASSIVE"
    os.close(held)
    assert beside(lock) == "None"  # the next one spins


def test_what_the_user_set_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "ACTIVE")
    assert choose_waiting(tmp_path / "spins") is None
    assert os.environ[POLICY] == "ACTIVE" and not (tmp_path / "spins").exists()


@pytest.mark.parametrize("what", ["a link", "no folder"])
def test_where_no_lock_can_be_held_threads_sleep(what: str, tmp_path: Path) -> None:
    lock = tmp_path / "spins"
    if what == "a link":  # in a folder that all may write to, another user could have laid it
        lock.symlink_to(tmp_path / "elsewhere")
    else:
        lock = lock / "in" / "it"
    assert choose_waiting(lock) is None
    assert os.environ.pop(POLICY) == "PASSIVE" and not (tmp_path / "elsewhere").exists()


def test_the_trainer_chooses_before_torch_and_ranks_sleep(tmp_path: Path) -> None:
    code = (
        "import sys; from fluxcore.training import threads, __main__ as trainer\n"
        "def choose(): print('torch' in sys.modules); sys.exit(7)\n"
        "threads.choose_waiting = choose\n"
        f"trainer.main(['--outputs', {str(tmp_path)!r}, '--run', 'cat', '--attempt', '1'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (7, "False\n"), ended.stderr
    assert launch._environment(0, 2, tmp_path)[POLICY] == "PASSIVE"
