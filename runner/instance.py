"""One runner per outputs folder: a lock for as long as it lives, and a file that says who it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from fluxcore.atomic import write_atomic
from fluxcore.errors import UserError
from fluxcore.log import EventLog
from fluxcore.runs.installation import STEM, Installation
from fluxcore.runs.processes import identify
from fluxcore.runs.supervision import LOCK_FILE, RUNNER_FILE, runner_alive, which_outputs

from . import VERSION


class AlreadyServed(UserError):
    """Another runner serves this outputs folder."""


class Instance:
    """Holds the folder's lock. Events of the installation go to `.events.jsonl`, with an empty run name."""

    def __init__(self, outputs: Path, *, ending: bool = False) -> None:
        """Take the lock. Raises AlreadyServed where another process has it, UserError where it can't be made.

        `ending`: it is only to stop everything, so that a full disk is no reason to turn back.
        """
        self.outputs = outputs
        self._fd = self._take(outputs)
        me = identify(os.getpid())
        about: dict[str, Any] = {"pid": os.getpid(), "version": VERSION}
        if me is not None:
            about |= {"create_time": me.create_time, "boot_id": me.boot_id, "start_ticks": me.start_ticks}
        self.about = about
        self.log = EventLog(outputs, "runner", run="", stem=STEM)
        try:
            said = about | which_outputs(outputs)
            write_atomic(outputs / RUNNER_FILE, orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            if ending:
                return
            os.close(self._fd)
            raise UserError(
                f"{outputs / RUNNER_FILE} can't be written ({error.strerror}); make room there, or choose another "
                "--outputs"
            ) from None

    def __enter__(self) -> Instance:
        self._append("runner.started", self.about)
        return self

    def is_asked_to_end(self, installation: Installation) -> bool:
        """Whether a `shutdown.requested` names this runner."""
        me = (self.about["pid"], self.about.get("start_ticks"), self.about.get("boot_id"))
        return me in installation.shutdown_of

    def withdraw(self) -> None:
        """Say that this runner serves no more, before it lets go of things: who asks now must get the next one."""
        with contextlib.suppress(OSError):  # who asks looks whether the process lives, too
            (self.outputs / RUNNER_FILE).unlink(missing_ok=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._append("runner.ended", {"pid": os.getpid(), "error": repr(error) if error else None})
        self.log.close()
        self.withdraw()
        os.close(self._fd)  # the lock goes with it; the file stays, so that no two runners lock different ones

    def _append(self, type: str, data: dict[str, Any]) -> None:
        try:
            self.log.append(type, data, durable=True)
        except OSError:
            pass  # a full disk must not keep the runner from serving or from leaving

    @staticmethod
    def _take(outputs: Path) -> int:
        fd = None
        try:
            # Python opens files so that children don't inherit them: the lock ends with this process alone.
            fd = os.open(outputs / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            os.close(fd)  # type: ignore[arg-type]
            other = runner_alive(outputs)
            who = f"a runner (pid {other.pid})" if other else "another runner"
            raise AlreadyServed(f"{who} already serves {outputs}; end it first, or choose another --outputs") from None
        except OSError as error:
            if fd is not None:
                os.close(fd)
            raise UserError(f"the outputs folder {outputs} can't be locked ({error.strerror})") from None
