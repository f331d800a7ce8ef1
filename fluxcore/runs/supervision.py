"""Is a runner alive, is a trainer alive, and starting a runner where none is."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxcore.tail import last_line

from .files import PROJECT_ROOT, RunError, check_outputs
from .fold import RunState
from .processes import Identity, is_alive

RUNNER_FILE = ".runner.json"
LOCK_FILE = ".runner.lock"
RUNNER_LOG = ".runner.log"
START_SECONDS = 20.0
MOST_STARTS = 3
PROBED_STATES = frozenset({"starting", "running", "stopping"})


@dataclass(frozen=True)
class RunnerInfo:
    """The runner that serves an outputs folder."""

    pid: int
    create_time: float
    boot_id: str
    version: str
    start_ticks: int = 0


def runner_alive(outputs: Path) -> RunnerInfo | None:
    """The runner that serves `outputs`, or None where none is alive. Costs two small reads; takes no lock."""
    try:
        data = json.loads((outputs / RUNNER_FILE).read_text())
    except (OSError, ValueError):
        return None
    identity = Identity.parse(data) if isinstance(data, dict) else None
    if identity is None or not is_alive(identity) or not _is_of(data, outputs):
        return None
    version = str(data.get("version") or "")
    return RunnerInfo(identity.pid, identity.create_time, identity.boot_id, version, identity.start_ticks)


def which_outputs(outputs: Path) -> dict[str, Any]:
    """What tells an outputs folder from a copy of it, for `.runner.json`: its path, and its lock file on the disk."""
    path = os.fsencode(outputs.resolve()).decode(errors="backslashreplace")  # JSON takes no stray bytes
    found: dict[str, Any] = {"outputs": path}
    with contextlib.suppress(OSError):
        status = os.stat(outputs / LOCK_FILE)
        found |= {"lock_device": status.st_dev, "lock_inode": status.st_ino}
    return found


def _is_of(data: dict[str, Any], outputs: Path) -> bool:
    """Whether a `.runner.json` was written for `outputs`, and not for a folder that this one is a copy of.

    Path or lock file: a folder may be renamed while it is served, and some network disks number files anew.
    """
    if "outputs" not in data:  # an older runner's
        return True
    here = which_outputs(outputs)
    lock = ("lock_device", "lock_inode")
    same_lock = "lock_inode" in here and all(data.get(name) == here[name] for name in lock)
    return same_lock or data["outputs"] == here["outputs"]


def ensure_runner(outputs: Path, *, timeout: float = START_SECONDS) -> RunnerInfo:
    """The runner of `outputs`; where none is alive, start a detached one and wait (seconds) until it serves.

    Safe when several callers race: the folder's lock lets one runner in, the others end, and every caller gets that
    one. Raises RunError where the folder can't be written or no runner comes up.
    """
    outputs = outputs.absolute()
    if found := runner_alive(outputs):
        return found
    check_outputs(outputs)
    deadline = time.monotonic() + timeout
    started, starts = start_runner(outputs), 1
    while time.monotonic() < deadline:
        if found := runner_alive(outputs):
            return found
        if started.poll() is not None and not _is_locked(outputs):
            if starts == MOST_STARTS:
                break
            started, starts = start_runner(outputs), starts + 1  # the one that had the lock was just leaving
        time.sleep(0.02)
    raise RunError(f"the runner did not start: {last_line(outputs / RUNNER_LOG) or f'see {outputs / RUNNER_LOG}'}")


def start_runner(outputs: Path) -> subprocess.Popen[bytes]:
    """Start a runner in a session of its own, so that it survives this process, its terminal and its connection.

    Raises RunError where it can't be started.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("FLUXGYM_RUN", "FLUXGYM_ATTEMPT")}
    try:
        with open(outputs / RUNNER_LOG, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "runner", "--outputs", str(outputs)],
                cwd=PROJECT_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    except OSError as error:
        raise RunError(f"the runner can't be started: {error.strerror}: {error.filename}") from None


def trainer_identity(state: RunState) -> Identity | None:
    """The process of the attempt that has not ended; None where there is none."""
    attempt = state.live_attempt
    if attempt is None or not attempt.pid:
        return None
    return Identity(attempt.pid, attempt.create_time, attempt.boot_id, attempt.start_ticks)


def trainer_alive(state: RunState) -> bool:
    """Whether the trainer that the log says is running really runs (pid, creation time and boot agree)."""
    identity = trainer_identity(state)
    return identity is not None and is_alive(identity)


def observed_state(state: RunState, outputs: Path) -> str:
    """`state.state`, or `lost`: the log says that it runs, its process is gone, and no runner lives to say so."""
    if state.state not in PROBED_STATES or trainer_identity(state) is None:
        return state.state
    if trainer_alive(state) or runner_alive(outputs) is not None:
        return state.state
    return "lost"


def _is_locked(outputs: Path) -> bool:
    """Whether a runner holds the folder's lock: one that starts, or one that leaves. Read from the kernel."""
    try:
        inode = os.stat(outputs / LOCK_FILE).st_ino
        with open("/proc/locks") as file:
            return any(f":{inode} " in line and "FLOCK" in line for line in file)
    except OSError:
        return False
