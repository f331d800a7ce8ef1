"""Work beside the trainings that a person waits for: a base model's download, captions for a set of pictures.

A job is a detached process of its own, so that it outlives the page, the browser and the app, and so that only it
imports what is heavy. What it has done stands in `outputs/.jobs/NAME.json`, written aside and renamed; whether it
still lives is asked of the process table (pid, start and boot). One job of a name at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from fluxcore.atomic import write_atomic
from fluxcore.errors import UserError
from fluxcore.runs.files import PROJECT_ROOT, check_outputs
from fluxcore.runs.processes import Identity, identify, is_alive

FOLDER = ".jobs"
SAY_SECONDS = 0.5
"""A job writes its progress down at most so often."""
_NAME = re.compile(r"[a-z]+-[A-Za-z0-9][A-Za-z0-9._-]{0,80}")


@dataclass(frozen=True)
class Job:
    """A job as it was last heard of. `state`: running, done, failed or stopped; `done` of `total` in `unit`."""

    name: str
    state: str
    done: float = 0
    total: float = 0
    unit: str = ""
    message: str = ""
    """Of a failure what to do; of a finished job what it did."""
    process: dict[str, Any] | None = None

    @property
    def share(self) -> float:
        """How far it is, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0


def start_job(outputs: Path, name: str, module: str, arguments: Sequence[str]) -> None:
    """Start `python -m module --job FILE arguments…`, unless the job runs already. Raises UserError."""
    check_outputs(outputs)
    file = _file(outputs, name)
    try:
        file.parent.mkdir(exist_ok=True)
        with open(file.parent / ".lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (there := read_job(outputs, name)) and there.state == "running":
                return
            file.unlink(missing_ok=True)
            with open(file.with_suffix(".log"), "wb") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", module, "--job", str(file.absolute()), *arguments],
                    cwd=PROJECT_ROOT,
                    env={key: value for key, value in os.environ.items() if not key.startswith("FLUXGYM_RUN")},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            identity = identify(child.pid)
            begun = Job(name, "running", process=asdict(identity) if identity else {"pid": child.pid})
            with contextlib.suppress(FileExistsError), open(file, "xb") as first:  # its own word comes before ours
                first.write(orjson.dumps(asdict(begun)))
            threading.Thread(target=child.wait, name="reap-job", daemon=True).start()  # no zombie stays behind it
    except OSError as error:
        raise UserError(f"it can't be begun ({error.strerror}: {error.filename})") from None


def read_job(outputs: Path, name: str) -> Job | None:
    """What is known of the job; None where there was none. One whose process is gone without a word has failed."""
    file = _file(outputs, name)
    try:
        job = Job(**orjson.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    if job.state == "running" and not ((who := Identity.parse(job.process or {})) and is_alive(who)):
        with contextlib.suppress(OSError, ValueError, TypeError):  # it may have ended since
            job = Job(**orjson.loads(file.read_bytes()))
        if job.state == "running":
            return Job(name, "failed", job.done, job.total, job.unit, _last_words(file))
    return job


def stop_job(outputs: Path, name: str) -> None:
    """Ask the job to end; what it has done so far stays."""
    job = read_job(outputs, name)
    who = Identity.parse(job.process or {}) if job and job.state == "running" else None
    if who and is_alive(who):
        with contextlib.suppress(ProcessLookupError):  # it may end just now
            os.kill(who.pid, signal.SIGTERM)


def forget_job(outputs: Path, name: str) -> None:
    """Forget a job that has ended."""
    if (job := read_job(outputs, name)) and job.state != "running":
        _file(outputs, name).unlink(missing_ok=True)


class Say:
    """Tells the progress of the job that this process is: `say(done, total)`, in `say.unit`."""

    def __init__(self, file: Path) -> None:
        self._file, self._said = file, -SAY_SECONDS
        self._me = asdict(identify(os.getpid()) or Identity(os.getpid(), 0.0, ""))
        self.unit, self.done, self.total = "", 0.0, 0.0

    def __call__(self, done: float, total: float) -> None:
        self.done, self.total = done, total
        if time.monotonic() - self._said >= SAY_SECONDS:
            self._said = time.monotonic()
            with contextlib.suppress(OSError):
                self.keep("running")

    def keep(self, state: str, message: str = "") -> None:
        """Write it down now. Raises OSError."""
        process = self._me if state == "running" else None
        _write(self._file, Job(self._file.stem, state, self.done, self.total, self.unit, message, process))


@contextlib.contextmanager
def working(file: Path) -> Iterator[Say]:
    """In the job's process: how the block ends is how the job ends.

    A UserError's sentence is kept for people; of any other error the kind, its traceback stands in the job's log.
    """
    say = Say(file)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        say.keep("running")
        yield say
    except SystemExit:
        say.keep("stopped")
        raise
    except (UserError, OSError) as error:
        what = str(error) if isinstance(error, UserError) else f"{error.strerror or error}: make room and begin again"
        say.keep("failed", what)
        sys.exit(1)
    except BaseException as error:
        say.keep("failed", f"it failed ({type(error).__name__}); its log is {file.with_suffix('.log')}")
        raise
    say.keep("done")


def _file(outputs: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no job")
    return outputs / FOLDER / f"{name}.json"


def _write(file: Path, job: Job) -> None:
    write_atomic(file, orjson.dumps(asdict(job)), durable=False)


def _last_words(file: Path) -> str:
    try:
        lines = file.with_suffix(".log").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"it ended without a word{f': {lines[-1][:300]}' if lines else ''}; begin it again"
