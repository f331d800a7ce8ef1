"""On a phone: nothing is wider than it, and a finished run is compared and taken along."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.shots import addresses, settle
from tests.browser.test_look_around import trained
from tests.fake_runs import a_night

pytestmark = pytest.mark.browser
PHONE = {"width": 380, "height": 800}
TOO_WIDE = """() => {
    const main = document.querySelector('[data-testid="stMain"]')
    return Math.max(main.scrollWidth - main.clientWidth, document.documentElement.scrollWidth - innerWidth)
}"""


def test_no_page_is_wider_than_a_phone(make_gym, tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    runs = a_night(outputs)
    try:
        gym = make_gym(outputs)
        page = gym.open("/", wait=False)
        page.set_viewport_size(PHONE)
        found = {}
        for path in addresses("tulips", ["my-cat", "too-large"]).values():
            page.goto(gym.url + path)
            settle(page, 60)
            found[path] = page.evaluate(TOO_WIDE)
        assert {path: wide for path, wide in found.items() if wide > 0} == {}
    finally:
        for run in runs.values():
            run.end_trainer()


def test_a_finished_run_is_looked_at_compared_and_taken_along(make_gym, tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for name in ("cat", "dog"):
        trained(outputs, name)
    gym = make_gym(outputs)
    page = gym.open("/run?name=cat", wait=False)
    page.set_viewport_size(PHONE)
    settle(page)
    page.get_by_text("Newest samples").wait_for()
    page.locator(".st-key-run-menu button:visible").first.click()
    page.get_by_role("link", name="Compare with other runs").click()
    page.wait_for_url("**/compare?runs=cat*dog")  # the newest other one
    page.get_by_text("Differences only").wait_for()
    chosen = page.locator(".st-key-compare-runs input").first
    chosen.click()
    chosen.press("Backspace")
    page.get_by_text("Choose at least two runs").wait_for()
    page.get_by_role("option", name="dog").click()
    page.get_by_text("Differences only").wait_for()
    page.wait_for_url("**/compare?runs=cat*dog")
    assert page.evaluate(TOO_WIDE) <= 0
    page.locator(".fg-matrix .fg-pic a").last.click()
    large = page.get_by_role("dialog", name="Samples of dog")
    large.get_by_text("a mushroom").wait_for()
    large.get_by_role("button", name="Close").click()
    large.wait_for(state="detached")
    link = page.locator(".st-key-compare-get-dog a")
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == "dog.safetensors"
    assert Path(download.value.path()).read_bytes() == (outputs / "dog" / "dog.safetensors").read_bytes()
