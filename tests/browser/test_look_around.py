"""Looking at what was trained: tabs with addresses, pictures large, a question to the history, compare, delete, undo."""

from __future__ import annotations

import io
import re
import zipfile

import pytest

from fluxcore.runs import load_run
from fluxcore.runs.trash import list_trash, trash_run
from studio.shots import settle
from tests.browser.conftest import unfold
from tests.fake_runs import FakeRun
from tests.place import wait_until

pytestmark = pytest.mark.browser


def trained(outputs, name: str, **settings) -> FakeRun:
    run = FakeRun(outputs, name, minutes_ago=3000, **settings)
    run.start(pid=1, create_time=1)
    run.sample()
    for _ in range(2):
        run.steps(60)
        run.machine()
        run.sample()
    run.append("runner", "run.completed", {"weights": run.weights(kilobytes=1), "steps": 120, "seconds": 99.0})
    return run


def test_a_page_left_open_tells_how_far_a_run_is_and_what_became_of_it(make_gym, tmp_path):
    run = FakeRun(tmp_path / "outputs", "cat", minutes_ago=2, sample_prompts="a cat")
    run.start()
    try:
        run.steps(96)
        gym = make_gym(tmp_path / "outputs")
        page, elsewhere = gym.open("/run?name=cat"), gym.open("/history")
        assert page.title() == elsewhere.title() == "10 % cat · FluxGym"
        page.get_by_role("button", name="Sample now").click()
        page.get_by_role("button", name="Sample now", disabled=True).wait_for()
        run.append("trainer", "phase.started", {"phase": "sample"})
        page.get_by_role("button", name="Sample now", disabled=False).wait_for()
        run.steps(96)
        for one in (page, elsewhere):
            one.wait_for_function("document.title === '20 % cat · FluxGym'")
        run.append("runner", "run.completed", {"weights": run.weights(kilobytes=1), "steps": 192, "seconds": 9.0})
        for one in (page, elsewhere):
            one.get_by_test_id("stToast").get_by_text("cat is finished: 192 steps").wait_for()
        assert (page.title(), elsewhere.title()) == ("cat: completed · FluxGym", "History · FluxGym")
    finally:
        run.end_trainer()


def test_somebody_looks_around(make_gym, tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    trained(outputs, "cat")
    trained(outputs, "dog", network_dim=32)
    gym = make_gym(outputs)
    page = gym.open("/run?name=cat&tab=samples")
    asked_elsewhere = []
    page.on("request", lambda request: asked_elsewhere.append(request.url) if gym.url not in request.url else None)

    page.get_by_text("How each prompt changed").wait_for()
    with page.expect_popup() as popup:  # a new tab, which the download takes away again
        page.get_by_role("link", name="All as a zip").click()
    archive = page.request.get(f"{gym.url}/files/runs/cat/sample?zip")
    assert archive.headers["content-type"] == "application/zip"
    assert len(zipfile.ZipFile(io.BytesIO(archive.body())).namelist()) == 12
    popup.value.close()
    page.get_by_role("button", name="Large").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("step 120").wait_for()
    page.keyboard.press("ArrowLeft")
    dialog.get_by_text("step 60").wait_for()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    page.locator(".fg-matrix .fg-pic a").nth(4).click()  # the second prompt's, at the middle of three steps
    dialog.get_by_text("step 60").wait_for()
    dialog.get_by_text("a grinning cat").wait_for()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert len(page.context.pages) == 1
    page.get_by_role("tab", name="Loss").click()
    page.wait_for_url(re.compile(r"name=cat&tab=loss"))
    page.locator("canvas, svg.marks").first.wait_for()
    page.reload()
    settle(page)
    assert page.get_by_role("tab", name="Loss").get_attribute("aria-selected") == "true"

    page.goto(f"{gym.url}/history")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("2 rows in").wait_for(timeout=40_000)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    with open(download.value.path(), encoding="utf-8") as file:
        assert file.readline().startswith('"run","title","state"')

    page.goto(f"{gym.url}/runs")
    settle(page)
    for name in ("cat", "dog"):
        page.locator(f".st-key-choose-{name} label").click()
        page.locator(".st-key-bulk").get_by_text(re.compile(r"of 2 chosen")).wait_for()
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url(re.compile(r"/compare\?runs=cat"))
    page.get_by_text("Differences only").wait_for()

    page.goto(f"{gym.url}/run?name=dog")
    settle(page)
    page.locator(".st-key-run-menu button").first.click()
    page.locator(".st-key-run-delete button").click()
    page.locator(".st-key-delete-yes button").click()
    page.wait_for_url("**/runs")
    page.get_by_role("button", name="Undo").click()
    page.locator(".st-key-card-dog").wait_for()
    assert load_run(outputs, "dog")[1].state == "completed"

    trash_run(outputs, "dog")
    page.goto(f"{gym.url}/settings")
    settle(page)
    unfold(page, "Trash: 1 run")
    page.locator(".st-key-empty-trash button").click()
    page.locator(".st-key-confirm-yes button").click()
    page.get_by_test_id("stToast").get_by_text("The trash is empty").wait_for()
    assert list_trash(outputs) == []
    assert [url for url in asked_elsewhere if not url.startswith(("data:", "blob:"))] == []


def test_start_is_in_reach_of_a_thumb(make_gym):
    page = make_gym().open("/", wait=False)
    page.set_viewport_size({"width": 380, "height": 740})
    settle(page)
    place = page.get_by_role("button", name="Start training").bounding_box()
    assert place["y"] + place["height"] <= 740 and place["width"] > 300
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 380


def test_a_theme_is_chosen_and_shown_as_chosen(gym):
    page = gym.open("/settings")
    theme = page.locator(".st-key-theme")

    def chosen() -> str:
        return theme.locator('[aria-checked="true"], [aria-pressed="true"]').inner_text()

    def background() -> str:
        return page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")

    wait_until(lambda: theme.get_by_text("System").is_visible() and chosen() == "System", 20)
    light = background()
    with page.expect_navigation():
        theme.get_by_text("Dark").click()
    wait_until(lambda: background() != light, 20)
    page.reload()
    settle(page)
    wait_until(lambda: chosen() == "Dark", 20)
    page.get_by_role("link", name=re.compile(r"Runs$")).first.click()
    page.get_by_role("heading", name="Runs").wait_for()
    page.get_by_role("link", name=re.compile(r"Settings$")).first.click()
    wait_until(lambda: theme.count() and chosen() == "Dark", 20)
    page.goto(f"{gym.url}/history")
    settle(page)
    assert background() != light, "it holds for all pages"
    page.goto(f"{gym.url}/settings")
    settle(page)
    with page.expect_navigation():
        theme.get_by_text("System").click()
    wait_until(lambda: background() == light, 20)
