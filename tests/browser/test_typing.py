"""What is typed is committed at a pause where it is meant to be, and nowhere else; two tabs."""

from __future__ import annotations

import re

import pytest

from fluxcore.runs import load_run
from studio.queries import load_box
from studio.shots import settle
from tests.browser.conftest import kept, unfold
from tests.fake_runs import FakeRun
from tests.place import wait_until

pytestmark = pytest.mark.browser
PAUSE = 1500
"""Milliseconds, several times of those after which a field is committed."""


def test_what_is_half_typed_elsewhere_is_nobodys_wish(make_gym, tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    FakeRun(outputs, "cat")
    gym = make_gym(outputs)
    page = gym.open()  # Train begins to listen, and goes on to in this window
    page.get_by_role("link", name=re.compile(r"History$")).first.click()
    box = page.get_by_label("SQL", exact=True)
    box.click()
    box.press("Control+a")
    box.press_sequentially("SELECT 1 AS half")
    wait_until(lambda: load_box(outputs) == "SELECT 1 AS half", 20)
    page.wait_for_timeout(PAUSE)
    assert page.get_by_text("Choose a question above").is_visible(), "nobody asked"
    page.reload()
    settle(page)
    assert box.input_value() == "SELECT 1 AS half"
    box.press("Control+Enter")
    page.get_by_text("1 row in").wait_for()

    page.get_by_role("link", name=re.compile(r"Run$")).first.click()
    page.get_by_role("heading", name="cat").wait_for()
    page.locator(".st-key-run-menu button").first.click()
    page.locator(".st-key-run-about button").click()
    dialog = page.get_by_role("dialog", name="Title, tags and note")
    dialog.get_by_label("Note").press_sequentially("half a note")
    page.wait_for_timeout(PAUSE)
    assert dialog.is_visible() and load_run(outputs, "cat")[1].note == ""
    dialog.get_by_role("button", name="Save").click()
    wait_until(lambda: load_run(outputs, "cat")[1].note == "half a note", 20)


def test_a_number_is_kept_at_a_pause_and_left_alone_half_way(gym):
    page = gym.open()
    unfold(page, "All other settings")
    field = page.get_by_label("LoRA dropout", exact=True)
    field.click()
    field.press("Control+a")
    field.press_sequentially("0.")
    page.wait_for_timeout(PAUSE)
    field.press_sequentially("0")
    page.wait_for_timeout(PAUSE)
    field.press_sequentially("5")
    wait_until(lambda: kept(gym.outputs, "network_dropout") == 0.05, 20)
    assert field.input_value() == "0.05" and field.evaluate("field => field === document.activeElement")
    page.reload()
    settle(page)
    unfold(page, "All other settings")
    assert field.input_value() == "0.05"


def test_two_tabs_write_one_draft(gym):
    one = gym.open()
    one.get_by_label("Name", exact=True).press_sequentially("cat")
    wait_until(lambda: kept(gym.outputs, "lora_name") == "cat", 20)
    two = gym.open()
    assert two.get_by_label("Name", exact=True).input_value() == "cat"
    two.get_by_label("Trigger word", exact=True).press_sequentially("p3t")
    wait_until(lambda: kept(gym.outputs, "concept_sentence") == "p3t", 20)
    # The first tab has not heard of it: its own word stands, and it is told which one stood there.
    one.get_by_label("Trigger word", exact=True).press_sequentially("c4t")
    one.get_by_test_id("stToast").get_by_text("“p3t”").first.wait_for()
    wait_until(lambda: kept(gym.outputs, "concept_sentence") == "c4t", 20)
    two.get_by_label("Name", exact=True).press("End")
    two.get_by_label("Name", exact=True).press_sequentially("s")
    two.get_by_test_id("stToast").get_by_text("Changed in another tab").first.wait_for()
    wait_until(lambda: two.get_by_label("Trigger word", exact=True).input_value() == "c4t", 20)
    assert (kept(gym.outputs, "lora_name"), kept(gym.outputs, "concept_sentence")) == ("cats", "c4t")


def test_a_section_stays_open_while_a_sentence_above_it_comes(gym):
    page = gym.open()
    unfold(page, "Samples")
    prompts = page.get_by_label("Sample prompts, one a line", exact=True)
    prompts.wait_for()
    page.get_by_label("Name", exact=True).press_sequentially("My Cat")
    page.get_by_text("It will be called").wait_for()
    settle(page)
    assert prompts.is_visible()


def test_two_windows_that_write_the_same_field_say_so(make_gym):
    gym = make_gym()
    one, two = gym.open(), gym.open()
    for window, text in ((one, "aaa"), (two, "bbb")):
        field = window.get_by_label("Name", exact=True)
        field.click()
        field.press("Control+a")
        window.keyboard.type(text, delay=30)
        wait_until(lambda text=text: kept(gym.outputs, "lora_name") == text, 20)
    two.get_by_test_id("stToast").get_by_text("Another tab had set Name to “aaa”").wait_for()
    assert kept(gym.outputs, "lora_name") == "bbb" and two.get_by_label("Name", exact=True).input_value() == "bbb"
