"""Installing a lock file into a virtual environment, saying what and how far. Standard library only.

The launcher runs this file by its path, before any package is there; `./fluxgym test` calls `install` for its extras.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NARROW, REPORT_SECONDS = 100, 15.0


class InstallError(RuntimeError):
    """The install did not work; the message is for a person."""


def stamp_of(venv: Path, lock: Path) -> Path:
    """The copy of `lock` that says that all of it is installed in `venv`."""
    return venv / f".{lock.name}"


def is_installed(venv: Path, lock: Path) -> bool:
    """Whether `venv` holds exactly what `lock` names, as far as we installed it."""
    try:
        return stamp_of(venv, lock).read_bytes() == lock.read_bytes() and (venv / "bin" / "python").exists()
    except OSError:
        return False


def install(venv: Path, lock: Path, what: str = "FluxGym") -> None:
    """Install `lock` into `venv`, made first where it is missing or broken. Two at a time take turns.

    Raises InstallError. What was broken off is done again: the stamp is removed first and written last.
    """
    with _turn(venv):
        if is_installed(venv, lock):
            return
        stamp = stamp_of(venv, lock)
        stamp.unlink(missing_ok=True)
        python = venv / "bin" / "python"
        if not _has_pip(python):
            print(f"Making a virtual environment in {venv}", file=sys.stderr, flush=True)
            made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
            if made.returncode:
                raise InstallError(_venv_problem(made.stdout + made.stderr))
        _pip(python, lock, what)
        aside = stamp.with_name(f"{stamp.name}.{os.getpid()}")
        shutil.copyfile(lock, aside)
        os.replace(aside, stamp)


@contextmanager
def _turn(venv: Path) -> Iterator[None]:
    venv.parent.mkdir(parents=True, exist_ok=True)
    with open(venv.parent / f".{venv.name.lstrip('.')}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another fluxgym is installing; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _has_pip(python: Path) -> bool:
    try:
        return subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def _venv_problem(output: str) -> str:
    if "ensurepip" in output:
        return "this Python can't make a virtual environment (Debian: apt-get install python3-venv)"
    last = (output.strip().splitlines() or ["no reason given"])[-1]
    return f"the virtual environment can't be made: {last}"


def _pip(python: Path, lock: Path, what: str) -> None:
    wanted = sum(1 for line in lock.read_text().splitlines() if "==" in line and not line.startswith("#"))
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--progress-bar",
        "off",
        "--disable-pip-version-check",
        "-r",
        str(lock),
    ]
    progress = Progress(f"Installing {what}", wanted, lambda: _installed(python))
    tail: deque[str] = deque(maxlen=30)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                tail.append(line.rstrip())
                progress.see(line)
        except BaseException:
            pip.terminate()
            raise
        finally:
            progress.close()
    if pip.returncode:
        print("\n".join(tail), file=sys.stderr)
        raise InstallError(f"pip could not install {lock.name} (above are its last words); run the same command again")


def _installed(python: Path) -> int:
    return sum(1 for _ in python.parent.parent.glob("lib/python*/site-packages/*.dist-info"))


class Progress:
    """One line that is drawn over on a terminal; elsewhere a line now and then."""

    def __init__(self, title: str, wanted: int, installed: Callable[[], int]) -> None:
        self._title, self._wanted, self._installed = title, wanted, installed
        self._seen: set[str] = set()
        self._text, self._drawn, self._drawn_at = "", "", 0.0
        self._start = time.monotonic()
        self._live = sys.stderr.isatty()
        self._done = threading.Event()
        self._base = installed()
        self._unpacking = False
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()

    def see(self, line: str) -> None:
        """Take one line of pip's output."""
        words = line.split()
        if words[:1] == ["Collecting"] or line.startswith("Requirement already satisfied:"):
            name = words[1 if words[0] == "Collecting" else 3].split("=")[0].split("<")[0].split(">")[0]
            self._seen.add(name)
            count = min(len(self._seen), self._wanted)
            self._text = f"{count} of {self._wanted} packages fetched · {name}"
        elif words[:1] == ["Downloading"] and words[-1].endswith("B)"):
            self._text = f"{self._text.split(' (')[0]} {' '.join(words[-2:])}"
        elif line.startswith("Installing collected packages:"):
            self._unpacking = True

    def close(self) -> None:
        """End the line."""
        self._done.set()
        self._ticker.join()
        seconds = time.monotonic() - self._start
        if seconds > 2:
            self._draw(f"{self._title}: done in {seconds:.0f} s", force=True)
        if self._live:
            print(file=sys.stderr)

    def _tick(self) -> None:
        waiting = True
        while waiting:
            if self._unpacking:
                new = max(0, self._installed() - self._base)
                self._text = f"unpacking, {new} of {self._wanted} packages in place"
            seconds = time.monotonic() - self._start
            self._draw(f"{self._title}: {self._text or 'asking the package index'} · {seconds:.0f} s")
            waiting = not self._done.wait(0.25)

    def _draw(self, text: str, force: bool = False) -> None:
        if self._live:
            width = min(NARROW, shutil.get_terminal_size().columns - 1)
            print("\r" + text[:width].ljust(width), end="", file=sys.stderr, flush=True)
        elif force or (time.monotonic() - self._drawn_at > REPORT_SECONDS and text != self._drawn):
            print(text, file=sys.stderr, flush=True)
            self._drawn, self._drawn_at = text, time.monotonic()


def main() -> int:
    """`install.py VENV LOCK`. Returns 0 once installed, 1 where it can't be (and says why), 130 after Ctrl-C."""
    venv, lock = Path(sys.argv[1]).absolute(), Path(sys.argv[2])
    try:
        install(venv, lock)
    except (InstallError, OSError) as error:
        print(f"fluxgym: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fluxgym: broken off; the next start goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
