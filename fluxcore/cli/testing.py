"""`test`: installs what the tests need, a browser included, and runs them."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from fluxcore.browser import find_chromium, is_ci
from fluxcore.errors import UserError
from fluxcore.runs.files import PROJECT_ROOT

from .install import InstallError, install
from .out import note, say

EXIT_NO_BROWSER = 1
SIDE_BY_SIDE = ["-n", "2", "--dist", "loadgroup"]
"""Much of the suite waits for processes and pages; tests/conftest.py says which tests never run at the same time."""


def test(context: typer.Context) -> int:
    """Run the whole test suite; further arguments go to pytest."""
    try:
        install(Path(sys.prefix), PROJECT_ROOT / "requirements-test.lock", "what the tests need")
    except InstallError as error:
        raise UserError(str(error)) from None
    if problem := install_browser():
        if is_ci():
            note(f"{problem}; CI runs the browser tests too")
            return EXIT_NO_BROWSER
        note(f"{problem}; the browser tests are skipped")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    everything = all(argument.startswith("-") for argument in context.args)
    command = [sys.executable, "-m", "pytest", *(SIDE_BY_SIDE if everything else []), *context.args]
    return subprocess.run(command, cwd=PROJECT_ROOT, env=environment).returncode


def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)] = "--help",
) -> int:
    """Print one of the project's figures (see benchmarks/); further arguments, --help included, go to it."""
    files = {file.stem.replace("_", "-"): file for file in sorted((PROJECT_ROOT / "benchmarks").glob("[a-z]*.py"))}
    if name in ("-h", "--help"):
        say("Usage: fluxgym bench NAME [--help] …\n")
        for known, file in files.items():
            module = ast.get_docstring(ast.parse(file.read_text())) or ""
            say(f"  {known:<14}{module.splitlines()[0].partition(': ')[2]}")
        return 0
    if name not in files:
        raise UserError(f"there is no benchmark {name!r}; there are {', '.join(files)}")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, "-m", f"benchmarks.{name.replace('-', '_')}", *context.args]
    return subprocess.run(command, cwd=PROJECT_ROOT, env=environment).returncode


def shots(context: typer.Context) -> int:
    """Photograph every page of the app, light, dark and on a phone; `--out DIR`, further arguments go to it."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "studio.shots", *context.args], cwd=PROJECT_ROOT, env=environment
    ).returncode


def install_browser() -> str:
    """See that a Chromium is there, installing Debian's where we may; "" or the reason why there is none."""
    if find_chromium():
        return ""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return "no Chromium is installed (Debian: apt-get install chromium, as root)"
    note("installing Debian's chromium for the browser tests")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            last = (done.stdout.strip().splitlines() or ["no reason given"])[-1]
            return f"Chromium could not be installed ({last})"
    return "" if find_chromium() else "Chromium was installed but is not found"
