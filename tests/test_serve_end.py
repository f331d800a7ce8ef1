"""What the terminal says of an app that ended without being asked to."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from fluxcore.cli import serve
from fluxcore.errors import UserError


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"ended from outside \(SIGKILL\), or by the system for want of memory"),
        ("import os; os.kill(os.getpid(), 15)", r"ended from outside \(SIGTERM\), trainings go on"),
        ("import os; os.kill(os.getpid(), 11)", r"ended by itself \(exit -11\): its last words"),
        ("raise SystemExit(3)", r"ended by itself \(exit 3\): its last words"),
    ],
)
def test_who_ended_it_is_said(monkeypatch: pytest.MonkeyPatch, program: str, says: str) -> None:
    monkeypatch.setattr(serve, "_said_last", lambda: "its last words")
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(UserError, match=says):
            serve.serve_until_ended(subprocess.Popen([sys.executable, "-c", program]))
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
