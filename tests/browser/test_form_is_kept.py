"""What is typed and dropped is kept as it happens: a reload at any moment restores it."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from studio.drafts import newest_draft
from studio.shots import settle
from tests.browser.conftest import kept, unfold
from tests.place import wait_until

pytestmark = pytest.mark.browser


def picture(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


def png(name: str, color: str) -> dict:
    return {"name": name, "mimeType": "image/png", "buffer": picture(color)}


def test_reload_restores_fields_pictures_and_captions(gym):
    page = gym.open()
    # Typed, never left, never confirmed with Enter: then the page is reloaded.
    page.get_by_label("Name", exact=True).press_sequentially("My Cat!")
    page.get_by_label("Trigger word", exact=True).fill("p3t")
    page.get_by_text("It will be called").wait_for()
    page.locator('input[type="file"]').set_input_files(
        [
            png("one.png", "red"), png("two.png", "blue"),
            {"name": "one.txt", "mimeType": "text/plain", "buffer": b"a red square"},
            {"name": "cut.png", "mimeType": "image/png", "buffer": picture("green")[:-30]},
        ]
    )  # fmt: skip
    page.get_by_text("2 pictures", exact=True).wait_for(timeout=60_000)
    page.get_by_text("cut.png can't be read").wait_for(timeout=60_000)
    page.get_by_label("Caption of two.png", exact=True).press_sequentially("a blue square")
    unfold(page, "All other settings")
    seed = page.get_by_label("Seed", exact=True)
    seed.press("Control+a")
    seed.press_sequentially("7")
    wait_until(lambda: kept(gym.outputs, "seed") == 7, 30)
    unfold(page, "Samples")
    page.get_by_label("Sample prompts, one a line", exact=True).press_sequentially("p3t on the moon")
    wait_until(lambda: kept(gym.outputs, "sample_prompts") == "p3t on the moon", 30)
    page.reload()
    settle(page)
    assert page.get_by_label("Name", exact=True).input_value() == "My Cat!"
    assert page.get_by_label("Trigger word", exact=True).input_value() == "p3t"
    assert page.get_by_label("Caption of one.png", exact=True).input_value() == "a red square"
    assert page.get_by_label("Caption of two.png", exact=True).input_value() == "a blue square"
    unfold(page, "All other settings")
    assert page.get_by_label("Seed", exact=True).input_value() == "7"
    unfold(page, "Samples")
    assert page.get_by_label("Sample prompts, one a line", exact=True).input_value() == "p3t on the moon"
    assert sorted(path.name for path in newest_draft(gym.outputs).dataset.iterdir() if path.is_file()) == [
        "one.png", "one.txt", "two.png", "two.txt"
    ]  # fmt: skip
    loaded = page.evaluate("[...document.querySelectorAll('.fg-pic img')].map(image => image.naturalWidth)")
    assert loaded == [64, 64], "the pictures themselves are drawn"

    page.get_by_role("button", name="one.png").click()
    page.get_by_text("one.png was taken out").wait_for()
    page.get_by_role("button", name="Undo").click()
    page.get_by_label("Caption of one.png", exact=True).wait_for()
    assert page.get_by_label("Caption of one.png", exact=True).input_value() == "a red square"


def test_typing_is_not_disturbed_by_the_live_parts(gym):
    page = gym.open()
    field = page.get_by_label("Trigger word", exact=True)
    field.press_sequentially("one two three four five six seven", delay=90)
    assert field.input_value() == "one two three four five six seven"
    typed = "one two three four five six seven"
    wait_until(lambda: kept(gym.outputs, "concept_sentence") == typed, 30)
