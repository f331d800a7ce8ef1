"""What the command line's tests share: calling it in this process or in its own, pictures, and a runner to serve it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from fluxcore.cli.main import main
from fluxcore.log import read_events
from fluxcore.runs import RunState, fold
from fluxcore.runs.supervision import runner_alive

ROOT = Path(__file__).resolve().parents[1]
STUB = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'tests' / 'stub_trainer.py'))}"


class Answer:
    """Exit code, standard output and standard error of one call."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        assert "Traceback" not in err, err

    @property
    def line(self) -> str:
        """The one line on standard error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]

    def json(self) -> list[dict]:
        return json.loads(self.out)


def call(capsys, *arguments: object) -> Answer:
    """The command line in this process."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return Answer(code, out, err)


def spawn(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, as the launcher starts it."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fluxcore", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FLUXGYM_TRAINER": STUB, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object, cwd: Path | None = None, **environment: str) -> Answer:
    """`spawn`, to its end (a minute at most)."""
    process = spawn(*arguments, cwd=cwd, **environment)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return Answer(process.returncode, out, err)


def pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (64, 64), (40 * i, 90, 20)).save(folder / f"p{i}.png")
        (folder / f"p{i}.txt").write_text(f"thing {i}")
    return folder


def bomb(path: Path, side: int = 60_000) -> None:
    """A PNG of a few bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def orders(outputs: Path, name: str, **what: object) -> None:
    """Tell the stub trainer of a run how to behave."""
    (outputs / name / "stub.json").write_text(json.dumps(what))


def state(outputs: Path, name: str) -> RunState:
    return fold(name, read_events(outputs / name))


def until(true: object, seconds: float = 20.0) -> None:
    """Wait for a callable to say yes."""
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)


@contextmanager
def served(outputs: Path) -> Iterator[Path]:
    """An outputs folder whose runner, whoever starts it, is ended with the test."""
    outputs.mkdir(parents=True, exist_ok=True)
    try:
        yield outputs
    finally:
        if info := runner_alive(outputs):
            os.kill(info.pid, signal.SIGTERM)
            until(lambda: runner_alive(outputs) is None)
