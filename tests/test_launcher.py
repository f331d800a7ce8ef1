"""`./fluxgym`: the cheap parts. Installing for real is what CI does on a fresh clone."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cli_tools import ROOT, until

from fluxcore.cli.install import InstallError, Progress, install, is_installed, stamp_of

FAKE_PIP = """
import os, sys, time
if "--version" in sys.argv: sys.exit(0)
calls = {calls!r}
with open(calls, "a") as file: file.write("pip\\n")
time.sleep({seconds})
print("Collecting one==1.0"); print("Installing collected packages: one"); print("Successfully installed one")
sys.exit({code})
"""


def fake_venv(tmp_path: Path, *, code: int = 0, seconds: float = 0.0) -> tuple[Path, Path, Path]:
    """A "virtual environment" whose pip only counts how often it was called."""
    venv, calls = tmp_path / "venv", tmp_path / "calls"
    (venv / "bin").mkdir(parents=True)
    (venv / "fake_pip.py").write_text(FAKE_PIP.format(calls=str(calls), seconds=seconds, code=code))
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{venv}/fake_pip.py" "$@"\n')
    python.chmod(0o755)
    lock = tmp_path / "requirements.lock"
    lock.write_text("# what\none==1.0\n")
    return venv, lock, calls


def test_it_installs_once_and_again_when_the_lock_changes(tmp_path, capfd):
    venv, lock, calls = fake_venv(tmp_path)
    assert not is_installed(venv, lock)
    install(venv, lock)
    install(venv, lock)
    assert calls.read_text().count("pip") == 1
    assert "FluxGym" in capfd.readouterr().err
    install(venv, lock)
    assert capfd.readouterr().err == "", "quiet when there is nothing to do"
    lock.write_text("one==2.0\n")
    install(venv, lock)
    assert calls.read_text().count("pip") == 2


def test_what_failed_is_shown_and_done_again(tmp_path, capfd):
    venv, lock, calls = fake_venv(tmp_path, code=1)
    for _ in range(2):
        with pytest.raises(InstallError, match="run the same command again"):
            install(venv, lock)
    assert calls.read_text().count("pip") == 2
    assert "Successfully installed one" in capfd.readouterr().err, "pip's last words"
    assert not stamp_of(venv, lock).exists()


def test_two_at_the_same_time_take_turns(tmp_path):
    venv, lock, calls = fake_venv(tmp_path, seconds=0.5)
    threads = [threading.Thread(target=install, args=(venv, lock)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls.read_text().count("pip") == 1


def test_an_install_that_was_killed_frees_the_lock(tmp_path):
    venv, lock, calls = fake_venv(tmp_path, seconds=30)
    script = ROOT / "fluxcore" / "cli" / "install.py"
    process = subprocess.Popen([sys.executable, "-I", str(script), str(venv), str(lock)], stderr=subprocess.DEVNULL)
    until(calls.exists)
    process.kill()
    process.wait()
    assert not is_installed(venv, lock)
    with open(tmp_path / ".venv.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_progress_counts_packages(tmp_path, capsys):
    progress = Progress("Installing", 4, lambda: 0)
    progress.see("Collecting torch==2.13.0 (from -r x)")
    progress.see("  Downloading torch-2.13.0.whl (190.1 MB)")
    progress.see("Requirement already satisfied: rich==1 in /somewhere")
    until(lambda: "packages fetched" in progress._text)
    progress.close()
    assert progress._text.startswith("2 of 4 packages fetched · rich")


def launch(*arguments: str, cwd: Path, launcher: Path = ROOT / "fluxgym", **environment: str):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # The suite's own environment, whatever made it, stands in for the launcher's.
    venv = Path(environment.pop("venv"))
    return subprocess.run(
        [str(launcher), *arguments], cwd=cwd, env={**env, "FLUXGYM_VENV": str(venv), **environment},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.fixture
def ready(tmp_path):
    """A finished environment: a link to this Python, and the stamp."""
    venv = tmp_path / "ready"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    shutil.copy(ROOT / "requirements.lock", venv / ".requirements.lock")
    return str(venv)


def test_it_runs_in_the_callers_directory_quietly(tmp_path, ready):
    (tmp_path / "here" / "fluxcore").mkdir(parents=True)
    (tmp_path / "here" / "fluxcore" / "__init__.py").write_text("raise SystemExit('the wrong fluxcore')")
    (tmp_path / "here" / "out put").mkdir()
    (tmp_path / "here" / "json.py").write_text("raise SystemExit('the wrong json')")
    done = launch("status", "--outputs", "out put", cwd=tmp_path / "here", venv=ready)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == f"no runs in {tmp_path / 'here' / 'out put'}"


def test_it_is_found_through_links_and_keeps_exit_codes_and_arguments(tmp_path, ready):
    (tmp_path / "one").symlink_to(ROOT / "fluxgym")
    (tmp_path / "two").symlink_to("one")
    done = launch("status", "a b*", cwd=tmp_path, launcher=tmp_path / "two", venv=ready)
    assert done.returncode == 64 and "'a b*'" in done.stderr


@pytest.mark.parametrize("python", ["/bin/false", "/no/such/python"])
def test_a_python_that_will_not_do(tmp_path, python):
    done = launch("status", cwd=tmp_path, venv=str(tmp_path / "none"), FLUXGYM_PYTHON=python)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "3.11" in done.stderr and python in done.stderr
    assert not (tmp_path / "none").exists()


def test_the_launcher_is_posix_shell(tmp_path):
    for shell in filter(shutil.which, ("dash", "bash", "sh")):
        assert subprocess.run([shell, "-n", ROOT / "fluxgym"]).returncode == 0
    assert "[[" not in (ROOT / "fluxgym").read_text()


def test_the_locks_name_exact_versions_of_everything():
    for name in ("requirements.lock", "requirements-test.lock"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        for line in lines:
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*(; sys_platform == \"linux\")?", line), (
                f"{name}: {line}"
            )
    lock = (ROOT / "requirements.lock").read_text()
    assert "\ntorch==2.13.0\n" in lock
    wanted = [
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")
    ]
    for line in wanted:
        name = re.match(r"[A-Za-z0-9._-]+", line)[0]
        assert re.search(rf"^{re.escape(name)}==", lock, re.M | re.I), f"{name} is not in the lock"
