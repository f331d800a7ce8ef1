"""An outputs folder with stub trainers, and shorthand for what is done with it. For tests and for benchmarks."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from fluxcore.config import parse_config
from fluxcore.log import LogReader
from fluxcore.runs import ENDED_STATES, RunFolder, RunState, create_run, load_run
from fluxcore.runs.processes import environment_has, process_table
from fluxcore.runs.supervision import runner_alive

TESTS = Path(__file__).resolve().parent
STUB = f"{shlex.quote(sys.executable)} {shlex.quote(str(TESTS / 'stub_trainer.py'))}"
"""The stub trainer, for FLUXGYM_TRAINER."""


def wait_until(done: Callable[[], Any], seconds: float = 10.0) -> Any:
    """What `done` gives once that is true; an AssertionError where it isn't within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := done():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def build_driver(folder: Path, *options: str) -> Path | None:
    """Put a driver to read GPUs from (fake_nvml.c, compiled) into `folder`; returns it, or None without a compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", *options, "-o", str(library), str(TESTS / "fake_nvml.c")], check=True)
    return folder


class Place:
    """An outputs folder with stub trainers in it."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs

    def make(self, name: str, config: dict[str, Any] | None = None, **stub: Any) -> RunFolder:
        values = {"lora_name": name, "sample_gpu_seconds": 0.2, "stop_grace_seconds": 5, **(config or {})}
        folder = create_run(
            self.outputs, parse_config(values), "cli", lambda data: Image.new("RGB", (64, 64)).save(data / "a.png")
        )
        (folder.path / "stub.json").write_text(json.dumps(stub))
        return folder

    def state(self, name: str) -> RunState:
        return load_run(self.outputs, name)[1]

    def types(self, name: str) -> list[str]:
        events = LogReader(self.outputs / name / "events.jsonl").read_new()
        return [event.type for event in events if event.type.startswith("run.")]

    def until(self, name: str, done: Callable[[RunState], Any], seconds: float = 20) -> RunState:
        wait_until(lambda: done(self.state(name)), seconds)
        return self.state(name)

    def ended(self, name: str) -> RunState:
        return self.until(name, lambda state: state.state in ENDED_STATES)

    def kill_runner(self) -> int:
        runner = runner_alive(self.outputs)
        assert runner is not None
        os.kill(runner.pid, signal.SIGKILL)
        wait_until(lambda: runner_alive(self.outputs) is None)
        return runner.pid

    def runners(self) -> list[int]:
        """Every runner of this folder, also one that has not got the lock yet."""
        found = []
        for pid in process_table():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"runner" in words and os.fsencode(self.outputs) in words:
                found.append(pid)
        return found

    def trainers(self) -> list[int]:
        rows = [row.pid for row in process_table().values() if not row.zombie]
        marks = [f"FLUXGYM_RUN={folder}" for folder in self.outputs.iterdir() if folder.is_dir()]
        return [pid for pid in rows if any(environment_has(pid, mark) for mark in marks)]

    def clear(self) -> None:
        """Kill every runner and trainer of this folder."""
        for pid in self.runners() + self.trainers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
