"""Asking the process that sends (`sending.py`) for one thing, and waiting: a test, or what Apprise says of a URL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson

from fluxcore.errors import UserError
from fluxcore.runs.files import PROJECT_ROOT

from .targets import find_target

WAIT_SECONDS = 60.0


def sending_command(*arguments: str) -> list[str]:
    """The command line of the sending process. It holds names alone: what others can see of a process is no secret."""
    return [sys.executable, "-m", "fluxcore.alerts.sending", *arguments]


def sending_environment() -> dict[str, str]:
    """Its environment; a run's mark must not be in it, or the sweep for the run's processes would find it."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("FLUXGYM_RUN", "FLUXGYM_ATTEMPT"))}


def send_test(outputs: Path, name: str) -> None:
    """Send a test to the target `name` and wait for it (up to a minute). Raises UserError with why it did not work."""
    find_target(outputs, name)
    answer = _ask(["--outputs", str(outputs.absolute()), "--test", name])
    if answer.get("error"):
        raise UserError(f"the test did not reach {name}: {answer['error']}")


def check_url(url: str) -> None:
    """Raise UserError where Apprise can't use `url`; it is not repeated. Nothing is sent."""
    if not _ask(["--check"], url).get("usable"):
        raise UserError("that is no address that Apprise can use; the forms are at the end of docs/alerts.md")


def _ask(arguments: list[str], given: str = "") -> dict[str, Any]:
    try:
        done = subprocess.run(
            sending_command(*arguments),
            input=given.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what a library says there may hold an address
            cwd=PROJECT_ROOT,
            env=sending_environment(),
            timeout=WAIT_SECONDS,
        )
        answer = orjson.loads(done.stdout)
        return answer if isinstance(answer, dict) else {}
    except subprocess.TimeoutExpired:
        raise UserError(f"no answer within {WAIT_SECONDS:.0f} s") from None
    except (OSError, orjson.JSONDecodeError):
        raise UserError("the process that sends alerts did not work; see that Apprise is installed") from None
