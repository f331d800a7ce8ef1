"""Pictures of the app, for the README and for looking: `python -m studio.shots --out DIR [--run NAME]`.

Starts a server of its own on a free port over the given outputs folder and photographs every page in light, dark and
on a phone. Needs Playwright and a Chromium (`CHROMIUM`, else the PATH's, else Playwright's own).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxcore.browser import find_chromium
from fluxcore.runs import default_outputs
from fluxcore.runs.supervision import runner_alive

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOOKS = {"light": ("light", 1440, 900), "dark": ("dark", 1440, 900), "phone": ("light", 380, 800)}


@dataclass
class Served:
    """A running server: its address and its process."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def server(outputs: Path, *, port: int = 0, ends_runner: bool = False, **environment: str) -> Iterator[Served]:
    """A real server over `outputs` on a port of 127.0.0.1 (0: a free one); it ends with the block.

    With `ends_runner` so does the folder's runner, which the server starts: for folders that go with the block.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = port or probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "streamlit_app.py", "--server.port", str(port)]
        + ["--server.address", "127.0.0.1"],
        cwd=ROOT,
        env=os.environ | {"FLUXGYM_OUTPUTS": str(outputs)} | environment,
        stdin=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2):
                    break
            except OSError:
                time.sleep(0.1)
        else:
            raise RuntimeError("the app's server did not come up")
        yield Served(url, process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if ends_runner and (runner := runner_alive(outputs)) is not None:
            with suppress(ProcessLookupError):
                os.kill(runner.pid, signal.SIGTERM)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(args=CHROMIUM_ARGUMENTS, executable_path=find_chromium())
        try:
            yield running
        finally:
            running.close()


def settle(page: Any, timeout: float = 30) -> None:
    """Wait until the script has run, nothing is a skeleton and every picture in sight is there."""
    page.wait_for_function(
        """() => {
            const app = document.querySelector('[data-testid="stApp"]');
            return app && app.dataset.testScriptState === 'notRunning'
              && !document.querySelector('[data-testid="stSkeleton"], [data-testid="stAppSkeleton"]')
              && [...document.images].every(image => image.complete || image.loading === 'lazy');
        }""",
        timeout=timeout * 1000,
    )
    page.wait_for_timeout(700)


RUN_TABS = ("samples", "loss", "monitor", "log", "checkpoints", "config", "events")


def addresses(run: str | None, others: list[str] | None = None) -> dict[str, str]:
    """What is photographed: a name for the file, and where it is. `others`: runs to compare that one with."""
    pages = {"train": "/", "runs": "/runs", "history": "/history", "settings": "/settings"}
    if run:
        pages["run"] = f"/run?name={run}"
        pages |= {f"run-{tab}": f"/run?name={run}&tab={tab}" for tab in RUN_TABS}
    if run and others:
        pages["compare"] = f"/compare?runs={','.join([run, *others])}"
    return pages


def photograph(url: str, out: Path, pages: dict[str, str], looks: list[str]) -> list[Path]:
    """Every page in every look; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    made = []
    with browser() as running:
        for look in looks:
            scheme, width, height = LOOKS[look]
            context = running.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
            page = context.new_page()
            for name, path in pages.items():
                page.goto(url + path)
                settle(page)
                # The page scrolls inside of the app: make the window as high as what is in it.
                needed = page.evaluate("document.querySelector('[data-testid=\"stMain\"]').scrollHeight")
                page.set_viewport_size({"width": width, "height": max(height, min(int(needed) + 10, 4000))})
                page.wait_for_timeout(500)
                file = out / f"{name}-{look}.png"
                page.screenshot(path=str(file))
                page.set_viewport_size({"width": width, "height": height})
                made.append(file)
            context.close()
    return made


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Photograph the app's pages.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--outputs", type=Path, default=default_outputs(), help="the runs to show")
    parser.add_argument("--run", help="the run whose page is photographed (default: the newest that drew samples)")
    parser.add_argument("--look", action="append", choices=list(LOOKS), help="default: all")
    parser.add_argument("--page", action="append", help="such as train, run-loss; default: all")
    arguments = parser.parse_args()
    outputs = arguments.outputs.absolute()
    names = _by_worth(outputs)
    run = arguments.run or next(iter(names), None)
    others = [name for name in names if name != run][:2]
    pages = {
        name: path for name, path in addresses(run, others).items() if not arguments.page or name in arguments.page
    }
    with server(outputs) as served:
        for file in photograph(served.url, arguments.out, pages, arguments.look or list(LOOKS)):
            print(file)


def _by_worth(outputs: Path) -> list[str]:
    """The runs, those that drew samples first, of them the newest."""
    from fluxcore.runs import load_all

    states, _ = load_all(outputs)
    return [state.name for state in sorted(states, key=lambda state: (bool(state.samples), state.started or ""))][::-1]


if __name__ == "__main__":
    main()
