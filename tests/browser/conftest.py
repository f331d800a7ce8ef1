"""A real server over a temporary outputs folder, and a real Chromium."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from fluxcore.browser import find_chromium, is_ci
from fluxcore.runs.supervision import runner_alive
from studio.drafts import newest_draft
from studio.shots import browser, server, settle

ROOT = Path(__file__).resolve().parents[2]
STUB_TRAINER = f"{sys.executable} {ROOT / 'tests' / 'stub_trainer.py'}"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser; without one the test is skipped, under CI it fails."""
    reason = ""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        reason = "Playwright is not installed (requirements-test.lock)"
    if not reason and find_chromium() is None:
        reason = "there is no Chromium: apt-get install chromium, or set CHROMIUM to its path"
    if reason:
        if is_ci():
            pytest.fail(f"browser tests must run here, but {reason}")
        pytest.skip(reason)
    with browser() as running:
        yield running


@dataclass
class Gym:
    """A served outputs folder and a way to open pages of it."""

    url: str
    outputs: Path
    open: Callable[..., Any]
    process: subprocess.Popen[bytes]


def end_everything_of(outputs: Path) -> None:
    """End the runner and the trainers of this test's outputs folder, found by their records and their environment."""
    if info := runner_alive(outputs):
        os.kill(info.pid, signal.SIGTERM)
    mark = str(outputs)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        alive = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("FLUXGYM_RUN", "").startswith(mark):
                    alive.append(process)
            except psutil.Error:
                continue
        if not alive and runner_alive(outputs) is None:
            return
        for process in alive:
            process.kill()
        time.sleep(0.1)


def kept(outputs: Path, field: str) -> Any:
    """What the newest draft on the disk holds for `field`; None where there is no draft yet."""
    draft = newest_draft(outputs)
    return draft.values[field] if draft else None


def unfold(page: Any, text: str) -> None:
    """Open the page's section with this text in its title. A click on what slides past while it opens hits nothing."""
    summary = page.locator("summary", has_text=text).first
    summary.click()
    summary.page.wait_for_function(
        """text => [...document.querySelectorAll('details')]
            .filter(one => one.querySelector('summary').textContent.includes(text))
            .every(one => !one.getAnimations({subtree: true}).some(moves => moves.playState === 'running'))""",
        arg=text,
    )


@pytest.fixture(scope="session")
def plans(tmp_path_factory) -> Path:
    """What the planner has measured: ten seconds of torch for each config, once for all tests."""
    return tmp_path_factory.mktemp("plans")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With a failure stands what its pages showed: one on another machine can't be looked at."""
    report = yield
    if report.when == "call" and report.failed:
        for page in getattr(item, "pages", []):
            try:
                shown = page.locator("body").inner_text(timeout=2000)
            except Exception as error:  # closed, or the browser is gone
                shown = f"({str(error).splitlines()[0]})"
            report.sections.append((f"page {page.url}", shown))
    return report


@pytest.fixture
def make_gym(request, chromium, tmp_path, plans) -> Iterator[Callable[..., Gym]]:
    """Starts servers with the environment that a test wants."""
    pages = request.node.pages = []
    with ExitStack() as stack:

        def make(outputs: Path | None = None, port: int = 0, **environment: str) -> Gym:
            outputs = outputs or tmp_path / "outputs"
            outputs.mkdir(exist_ok=True)
            if not (outputs / ".plans").exists():
                (outputs / ".plans").symlink_to(plans)
            stack.callback(end_everything_of, outputs)
            served = stack.enter_context(server(outputs, port=port, **environment))
            context = chromium.new_context(viewport={"width": 1400, "height": 1000})
            stack.callback(context.close)

            def open_page(path: str = "/", wait: bool = True) -> Any:
                page = context.new_page()
                page.set_default_timeout(20_000)
                pages.append(page)
                page.goto(served.url + path)
                if wait:
                    settle(page)
                return page

            return Gym(served.url, outputs, open_page, served.process)

        yield make


@pytest.fixture
def gym(make_gym) -> Gym:
    """The app as it starts by itself on loopback, with the stub trainer."""
    return make_gym(FLUXGYM_TRAINER=STUB_TRAINER)
