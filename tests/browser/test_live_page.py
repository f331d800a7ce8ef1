"""What moves on a page moves without a run of its script, and what more changes has it run at once."""

from __future__ import annotations

import json
import re

from fluxcore.runs import load_run, request_start, request_stop
from tests.browser.conftest import STUB_TRAINER
from tests.place import Place, wait_until

NO_TICKS = """(() => {
    const set = window.setInterval;
    window.setInterval = (what, milliseconds, ...more) => milliseconds >= 1000 ? 0 : set(what, milliseconds, ...more);
})()"""
"""Takes the pace from Streamlit's fragments: what is kept up to date now is so by the pulse."""


def test_numbers_move_and_a_change_of_state_is_told(make_gym):
    gym = make_gym(
        FLUXGYM_TRAINER=STUB_TRAINER, STUB=json.dumps({"steps": 5000, "step_seconds": 0.2, "save_every": 20})
    )
    Place(gym.outputs).make("cat")
    page = gym.open("/runs")
    page.context.add_init_script(NO_TICKS)
    page.goto(f"{gym.url}/run?name=cat")
    page.get_by_role("heading", name="cat").wait_for()
    request_start(gym.outputs, "cat", "cli")
    wait_until(lambda: load_run(gym.outputs, "cat")[1].step > 1, 60)
    head = page.locator("[data-fg-piece='head:cat']")

    def step() -> int:
        found = re.search(r"step ([\d,]+) / 5,000", head.inner_text())
        return int(found[1].replace(",", "")) if found else 0

    wait_until(step, 30)  # it began without this page's doing
    page.get_by_role("button", name="Save now").wait_for()
    assert page.locator(".st-key-banner [data-fg-piece='banner:cat']").count() == 1
    first = step()
    wait_until(lambda: step() > first + 3, 30)
    assert re.match(r"\d+ % cat", page.title())
    request_stop(gym.outputs, "cat", "cli")
    page.locator(".st-key-run-resume button").wait_for(timeout=30_000)
    page.get_by_text("Stopped on request").first.wait_for()
    page.wait_for_function("document.title.startsWith('cat: stopped')")
