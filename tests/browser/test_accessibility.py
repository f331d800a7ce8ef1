"""axe-core over the pages, and a viewer in a real browser: what is refused there although it was asked for."""

from __future__ import annotations

import pytest

from fluxcore.access import make_viewer_token
from fluxcore.runs import load_run
from studio.shots import RUN_TABS, addresses, settle
from tests import axe
from tests.browser.conftest import unfold
from tests.fake_runs import a_night

pytestmark = pytest.mark.browser
BACKGROUND = "getComputedStyle(document.querySelector('.stApp')).backgroundColor"


def test_no_page_has_a_serious_fault_and_a_viewer_changes_nothing(make_gym, tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    runs = a_night(outputs)
    viewers = make_viewer_token(outputs)
    gym = make_gym(outputs, FLUXGYM_TOKEN="the-token-of-this-test")
    owner = gym.open("/?token=the-token-of-this-test")
    found = []
    for path in addresses("tulips", ["my-cat", "too-large"]).values():
        owner.goto(gym.url + path)
        settle(owner, 60)
        backgrounds = set()
        for scheme, rules in (("dark", ["color-contrast"]), ("light", [])):  # in dark the colours are others, no more
            owner.emulate_media(color_scheme=scheme)
            owner.wait_for_timeout(300)
            backgrounds.add(owner.evaluate(BACKGROUND))
            found += [f"{path}, {scheme}: {one}" for one in axe.audit(owner, *rules) if not one.is_theirs]
        assert len(backgrounds) == 2, backgrounds
    assert not found, "\n".join(found)
    owner.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x>')")
    assert [one.rule for one in axe.audit(owner) if not one.is_theirs] == ["image-alt"], "it sees what is wrong"

    owner.context.clear_cookies()
    page = owner
    page.goto(f"{gym.url}/run?name=my-cat&token={viewers}")
    settle(page, 60)
    page.get_by_text("You look on").wait_for()
    page.get_by_role("heading", name="my-cat").wait_for()
    stop = page.locator('[class*="st-key-banner-stop-my-cat"] button')
    assert not stop.is_visible()
    stop.evaluate("button => button.click()")  # it is hidden, and a browser may press it all the same
    page.get_by_text("this link may look").wait_for()
    assert load_run(outputs, "my-cat")[1].state == "running"
    assert page.request.get(f"{gym.url}/files/runs/my-cat/dataset/picture1.png").status == 200
    assert page.request.put(f"{gym.url}/_stcore/upload_file/a/b").status == 403
    page.goto(f"{gym.url}/settings")
    page.get_by_text("This page is the owner's").wait_for()
    for run in runs.values():
        run.end_trainer()


def faults(page, where: str, *rules: str) -> list[str]:
    return [f"{where}: {one}" for one in axe.audit(page, *rules) if not one.is_theirs]


def test_no_live_page_no_phone_and_no_dialog_has_a_serious_fault(make_gym, tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    runs = a_night(outputs)
    try:
        gym = make_gym(outputs, HF_TOKEN="hf_" + "a" * 20)
        page = gym.open("/run?name=my-cat")
        found = faults(page, "a live run")
        for tab in RUN_TABS:
            page.goto(f"{gym.url}/run?name=my-cat&tab={tab}")
            settle(page)
            found += faults(page, f"{tab} of a live run")

        page.goto(f"{gym.url}/run?name=tulips")
        settle(page)
        dialog = page.get_by_role("dialog")
        for item in ("about", "duplicate", "publish", "delete"):
            page.locator(".st-key-run-menu button:visible").first.click()
            page.locator(f".st-key-run-{item} button").click()
            dialog.wait_for()
            settle(page)
            found += faults(page, f"the dialog {item}")
            page.emulate_media(color_scheme="dark")
            page.wait_for_timeout(300)
            found += faults(page, f"the dialog {item} in the dark", "color-contrast")
            page.emulate_media(color_scheme="light")
            dialog.get_by_role("button", name="Close").click()
            dialog.wait_for(state="detached")
        page.goto(f"{gym.url}/run?name=tulips&tab=samples")
        settle(page)
        page.get_by_role("button", name="Large").click()
        dialog.wait_for()
        settle(page)
        found += faults(page, "a sample shown large")

        page.set_viewport_size({"width": 380, "height": 800})
        for path in addresses("tulips", ["my-cat", "too-large"]).values():
            page.goto(gym.url + path)
            settle(page)
            found += faults(page, f"{path} on a phone")
        page.goto(f"{gym.url}/")
        settle(page)
        for part in ("All other settings", "As text, and as a command", "Samples"):
            unfold(page, part)
            settle(page)
        found += faults(page, "Train, unfolded, on a phone")
    finally:
        for run in runs.values():
            run.end_trainer()
    assert not found, "\n".join(found)
