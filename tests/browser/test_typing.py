"""What is typed is committed at a pause where it is meant to be, and nowhere else; two tabs."""

from __future__ import annotations

import re

import pytest

from fluxcore.dataset import list_pictures, read_caption
from fluxcore.runs import load_run
from studio.drafts import newest_draft
from studio.queries import load_box
from studio.shots import settle
from tests.browser.conftest import STUB_TRAINER, kept, unfold
from tests.browser.test_story import drop_pictures
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


def test_a_dialog_keeps_what_was_typed_however_it_is_left(make_gym, tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    FakeRun(outputs, "cat")
    page = make_gym(outputs).open("/run?name=cat")
    page.locator(".st-key-run-menu button").first.click()
    page.locator(".st-key-run-about button").click()
    dialog = page.get_by_role("dialog", name="Title, tags and note")
    dialog.get_by_label("Note").press_sequentially("half a note")
    page.mouse.click(5, 5)  # beside it
    dialog.wait_for(state="detached")
    wait_until(lambda: load_run(outputs, "cat")[1].note == "half a note", 20)
    page.locator(".st-key-run-menu button").first.click()
    page.locator(".st-key-run-about button").click()
    dialog.get_by_label("Title").press_sequentially("Tom")
    dialog.get_by_label("Title").press("Escape")
    dialog.wait_for(state="detached")
    wait_until(lambda: load_run(outputs, "cat")[1].title == "Tom", 20)
    page.locator(".st-key-run-menu button").first.click()
    page.locator(".st-key-run-about button").click()
    tags = dialog.get_by_role("combobox")
    tags.press_sequentially("tabby")
    tags.press("Enter")
    wait_until(lambda: load_run(outputs, "cat")[1].tags == ["tabby"], 20)
    assert dialog.get_by_label("Note").input_value() == "half a note"
    tags.press_sequentially("ta")
    page.get_by_role("option", name="Add: ta").wait_for()
    dialog.get_by_label("Note").click()  # what was typed is added, not the tag that is like it
    wait_until(lambda: load_run(outputs, "cat")[1].tags == ["tabby", "ta"], 20)
    dialog.get_by_role("button", name="Done").click()
    dialog.wait_for(state="detached")


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


def test_a_click_to_another_page_right_after_typing_leads_there_and_loses_nothing(make_gym):
    gym = make_gym()
    page = gym.open()
    drop_pictures(page, 3)
    captions = ["p3t thing 0", "p3t thing 1", "p3t thing 2"]
    typed = ""
    for there in ("Settings", "Runs", "History", "Runs"):
        name = page.get_by_label("Name", exact=True)
        name.click()
        page.keyboard.type("abc")
        typed += "abc"
        page.get_by_role("link", name=re.compile(f"{there}$")).first.click()
        page.get_by_role("heading", name=there, exact=True).wait_for()
        wait_until(lambda wanted=typed: kept(gym.outputs, "lora_name") == wanted, 20)
        page.wait_for_timeout(500)
        assert page.url.endswith(f"/{there.lower()}")
        page.get_by_role("link", name=re.compile("Train$")).first.click()
        page.get_by_role("heading", name="Train a LoRA").wait_for()
        settle(page)
        assert [picture.caption for picture in list_pictures(newest_draft(gym.outputs).dataset)] == captions
        shown = page.get_by_label(re.compile("^Caption of"))
        assert [shown.nth(i).input_value() for i in range(3)] == captions


def test_a_statement_edited_and_left_at_once_is_not_the_saved_question_again(make_gym):
    gym = make_gym()
    page = gym.open("/history")
    page.get_by_label("Saved questions", exact=True).click()
    page.get_by_role("option", name="Loss by epoch").click()
    wait_until(lambda: "epoch" in load_box(gym.outputs), 20)
    settle(page)
    for there in ("Runs", "Settings"):
        box = page.get_by_label("SQL", exact=True)
        box.click()
        page.keyboard.press("Control+a")
        page.keyboard.type(f"SELECT '{there}'")
        page.get_by_role("link", name=re.compile(f"{there}$")).first.click()
        page.get_by_role("heading", name=there, exact=True).wait_for()
        wait_until(lambda wanted=there: load_box(gym.outputs) == f"SELECT '{wanted}'", 20)
        page.wait_for_timeout(500)
        assert load_box(gym.outputs) == f"SELECT '{there}'" and page.url.endswith(f"/{there.lower()}")
        page.get_by_role("link", name=re.compile("History$")).first.click()
        page.get_by_role("heading", name="History").wait_for()
        settle(page)
        assert page.get_by_label("SQL", exact=True).input_value() == f"SELECT '{there}'"


def test_the_shortcut_starts_with_what_stands_in_the_field_and_tab_leads_to_the_next_one(make_gym):
    gym = make_gym(FLUXGYM_TRAINER=STUB_TRAINER)
    page = gym.open()
    drop_pictures(page, 3)
    page.get_by_label("Name", exact=True).click()
    page.keyboard.type("cat")
    page.keyboard.press("Tab")
    page.keyboard.type("p3t")
    wait_until(lambda: kept(gym.outputs, "concept_sentence") == "p3t", 20)
    caption = page.get_by_label("Caption of p1.png", exact=True)
    caption.click()
    page.keyboard.press("Control+a")
    page.keyboard.type("p3t on a sofa")
    page.keyboard.press("Alt+Enter")
    page.wait_for_url("**/run?name=cat")
    assert read_caption(gym.outputs / "cat" / "dataset" / "p1.png") == "p3t on a sofa"
