"""axe-core over the pages, and a viewer in a real browser: what is refused there although it was asked for."""

from __future__ import annotations

import pytest

from fluxcore.access import make_viewer_token
from fluxcore.runs import load_run
from studio.shots import addresses, settle
from tests import axe
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
