"""A fresh server's very first visitor opens a deep link: the entry script and the gate stand before it all the same."""

from __future__ import annotations

import pytest

from studio.shots import settle
from tests.fake_runs import FakeRun

pytestmark = pytest.mark.browser
TOKEN = "the-token-of-this-test"


def test_deep_link_first_with_the_gate(make_gym, tmp_path):
    FakeRun(tmp_path, "my-cat").folder.path.rename(tmp_path / "moved")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "moved").rename(tmp_path / "outputs" / "my-cat")
    gym = make_gym(FLUXGYM_TOKEN=TOKEN)
    page = gym.open("/run?name=my-cat", wait=False)
    assert "asks for its token" in page.inner_text("body")
    assert page.locator('[data-testid="stApp"]').count() == 0
    refused = page.evaluate(
        """() => new Promise(done => {
            const socket = new WebSocket(`ws://${location.host}/_stcore/stream`);
            socket.onopen = () => done("open"); socket.onclose = () => done("refused");
        })"""
    )
    assert refused == "refused"
    for path in ("/files/runs/my-cat/dataset/picture1.png", "/_stcore/host-config", "/media/x"):
        assert page.request.get(gym.url + path).status == 401

    page.goto(f"{gym.url}/run?name=my-cat&token={TOKEN}")
    settle(page)
    assert page.url == f"{gym.url}/run?name=my-cat", "the token leaves the address, the rest stays"
    page.get_by_role("heading", name="my-cat").wait_for()
    page.get_by_role("link", name="Runs").first.wait_for()
    cookies = page.context.cookies()
    ours = next(cookie for cookie in cookies if cookie["name"].startswith("fluxgym-"))
    assert ours["httpOnly"] and ours["sameSite"] == "Lax" and TOKEN not in ours["value"]
    assert page.request.get(f"{gym.url}/files/runs/my-cat/dataset/picture1.png").status == 200


def test_a_page_that_is_none_is_not_found(gym):
    page = gym.open("/conftest")
    page.get_by_text("Page not found").wait_for()
    page.get_by_role("link", name="Runs").first.wait_for()
    assert page.locator('[data-testid="stException"]').count() == 0, "nothing was run in its place"


def test_an_unknown_run_says_so(gym):
    page = gym.open("/run?name=nobody")
    page.get_by_text("There is no run nobody here").wait_for()
    assert page.get_by_role("link", name="All runs").get_attribute("href") == "runs", "where to go instead"
    assert not (gym.outputs / "nobody").exists(), "a link that is looked at makes no run"
