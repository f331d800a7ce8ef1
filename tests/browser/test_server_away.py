"""The server dies and comes back: nothing that is typed meanwhile is lost, and nothing of another tab goes silently."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from fluxcore.dataset import read_caption
from studio.drafts import newest_draft
from studio.shots import settle
from tests.browser.conftest import kept, unfold
from tests.browser.test_form_is_kept import png
from tests.place import wait_until

pytestmark = pytest.mark.browser
TAKE_FOCUS = "document.activeElement.blur()"
IS_AWAY = "document.querySelector('.stApp').dataset.testConnectionState !== 'CONNECTED'"

GATHER_TOASTS = """window.toasts = [], new MutationObserver(() => {
    for (const toast of document.querySelectorAll('[data-testid="stToast"]'))
        if (!toasts.includes(toast.innerText)) toasts.push(toast.innerText)
}).observe(document.body, {childList: true, subtree: true})"""


def kill(gym, page) -> None:
    gym.process.kill()
    gym.process.wait()
    page.wait_for_function(IS_AWAY)


def becomes(read, wanted, seconds: float) -> None:
    """Wait until `read()` is that; says what it was instead."""
    try:
        wait_until(lambda: read() == wanted, seconds)
    except AssertionError:
        assert read() == wanted


def add(field, text: str, delay: float = 0) -> None:
    """Type at the end of what stands in a field, with keys, as a person does."""
    field.click()
    field.press("Control+End")
    field.page.keyboard.type(text, delay=delay)


def test_typing_goes_on_while_the_server_is_away_and_comes_back(make_gym):
    gym = make_gym()
    page = gym.open()
    page.locator('input[type="file"]').set_input_files([png("one.png", "red")])
    page.get_by_text("1 picture", exact=True).wait_for()
    unfold(page, "All other settings")
    settle(page)
    unfold(page, "Samples")
    name, trigger, prompts, repeats, seed, caption = (
        page.get_by_label(label, exact=True)
        for label in (
            "Name", "Trigger word", "Sample prompts, one a line", "Repeats per picture", "Seed", "Caption of one.png",
        )
    )  # fmt: skip
    add(name, "My Cat")
    add(caption, "a red")
    wait_until(lambda: kept(gym.outputs, "lora_name") == "My Cat", 20)
    wait_until(lambda: read_caption(newest_draft(gym.outputs).dataset / "one.png") == "a red", 20)
    settle(page)  # a page that dies half drawn has fields twice, or not yet
    add(trigger, "p3")  # in the middle of a word, maybe not on the disk yet
    kill(gym, page)
    page.keyboard.type("t")  # the field was not left
    assert trigger.input_value() == "p3t"
    # Streamlit's window, which would take the focus, makes way for a line.
    page.get_by_role("status").get_by_text("What you type here is kept").wait_for()
    page.get_by_role("dialog").wait_for(state="detached")
    add(name, " in the")
    add(prompts, "p3t on\nthe moon")
    seed.press("Control+a")
    page.keyboard.type("7")
    repeats.press("Control+a")
    page.keyboard.type("12")
    add(caption, " square")
    assert caption.input_value() == "a red square"
    add(name, " rain")
    assert page.evaluate("document.activeElement.ariaLabel") == "Name"
    page.evaluate(GATHER_TOASTS)
    make_gym(gym.outputs, port=urlsplit(gym.url).port)
    page.keyboard.type(" and in the snow, all day long", delay=60)  # across the reconnection
    page.wait_for_function(f"!({IS_AWAY})", timeout=60_000)
    page.keyboard.type(" and night", delay=60)

    whole = "My Cat in the rain and in the snow, all day long and night"
    becomes(lambda: kept(gym.outputs, "lora_name"), whole, 30)
    settle(page)
    fields = {"concept_sentence": "p3t", "sample_prompts": "p3t on\nthe moon", "seed": 7, "num_repeats": 12}
    becomes(lambda: {field: kept(gym.outputs, field) for field in fields}, fields, 20)
    becomes(lambda: read_caption(newest_draft(gym.outputs).dataset / "one.png"), "a red square", 20)
    shown = (name, trigger, prompts, seed, repeats, caption)
    wanted = [whole, "p3t", "p3t on\nthe moon", "7", "12", "a red square"]
    becomes(lambda: [field.input_value() for field in shown], wanted, 20)
    assert page.evaluate("window.toasts") == [], "nobody else wrote"
    assert page.locator(".fg-away").count() == 0


def test_no_key_is_lost_when_streamlit_lays_its_window_over_the_page(make_gym):
    gym = make_gym()
    page = gym.open()
    name = page.get_by_label("Name", exact=True)
    add(name, "My cat")
    wait_until(lambda: kept(gym.outputs, "lora_name") == "My cat", 20)
    name.press("Home")
    kill(gym, page)
    text = "".join(f"{number} " for number in range(130))
    page.keyboard.type(text, delay=12)  # the window comes meanwhile
    page.get_by_role("status").get_by_text("What you type here is kept").wait_for()
    name.click()
    name.press("End")
    page.evaluate(TAKE_FOCUS)  # as that window does on a busy machine, and a field made anew
    page.keyboard.type("z and")
    page.evaluate(TAKE_FOCUS)
    page.keyboard.press("Backspace")
    repeats = page.get_by_label("Repeats per picture", exact=True)
    repeats.press("Control+a")
    page.keyboard.type("1")
    page.evaluate(TAKE_FOCUS)
    page.keyboard.type("2")
    page.get_by_role("heading", name="Train a LoRA").click()
    page.keyboard.type("x")  # nobody types into a field any more
    assert (name.input_value(), repeats.input_value()) == (f"{text}My catz an", "12")


def test_a_reload_while_the_server_is_away_loses_nothing(make_gym):
    gym = make_gym()
    page = gym.open()
    trigger = page.get_by_label("Trigger word", exact=True)
    unfold(page, "All other settings")
    add(trigger, "p3t")
    wait_until(lambda: kept(gym.outputs, "concept_sentence") == "p3t", 20)
    kill(gym, page)
    add(trigger, "s")
    seed = page.get_by_label("Seed", exact=True)
    seed.press("Control+a")
    page.keyboard.type("7")
    with pytest.raises(Exception, match="ERR_CONNECTION_REFUSED"):
        page.reload()
    make_gym(gym.outputs, port=urlsplit(gym.url).port)
    with suppress(Exception):  # Chromium loads an error's page anew by itself, which interrupts this
        page.goto(gym.url)
    trigger.wait_for()
    settle(page)
    # The settings are folded now: they are kept all the same.
    becomes(lambda: (kept(gym.outputs, "concept_sentence"), kept(gym.outputs, "seed")), ("p3ts", 7), 30)
    wait_until(lambda: trigger.input_value() == "p3ts", 20)


def test_what_another_tab_wrote_meanwhile_is_told(make_gym):
    gym = make_gym()
    page = gym.open()
    trigger = page.get_by_label("Trigger word", exact=True)
    add(trigger, "p3t")
    wait_until(lambda: kept(gym.outputs, "concept_sentence") == "p3t", 20)
    kill(gym, page)
    add(trigger, "s")
    newest_draft(gym.outputs).edit({"concept_sentence": "c4t", "lora_name": "cat"})  # as another browser's server would
    make_gym(gym.outputs, port=urlsplit(gym.url).port)
    page.get_by_test_id("stToast").get_by_text("“c4t”").wait_for(timeout=60_000)
    wait_until(lambda: kept(gym.outputs, "concept_sentence") == "p3ts", 20)
    wait_until(lambda: page.get_by_label("Name", exact=True).input_value() == "cat", 20)
    assert trigger.input_value() == "p3ts"
