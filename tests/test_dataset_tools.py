"""What a person sees of pictures before training on them, and what changes many captions at a time."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from fluxcore.captioning.florence import caption_folder
from fluxcore.config import RunConfig
from fluxcore.dataset import list_pictures, write_caption
from fluxcore.dataset.looks import Looks, near_twins
from studio.captions import has_trigger, replaced
from studio.captions import with_trigger as caption_with
from studio.drafts import newest_draft
from studio.picture_marks import marks_of, trained_size
from studio.prompts import with_trigger
from studio.uploads import take_files
from tests.drawn_pages import add_pictures, answered, open_page, text
from tests.drawn_pages import outputs as outputs  # the fixture
from tests.test_uploads import png


def drawing(seed: int, size: int = 256) -> Image.Image:
    image = Image.new("RGB", (size, size), (30 * seed % 255, 90, 200))
    pen = ImageDraw.Draw(image)
    for i in range(6):
        x, y = (seed * 97 + i * 53) % 200, (seed * 31 + i * 89) % 200
        pen.ellipse((x, y, x + 20 + 9 * i, y + 50), fill=(40 * i, (seed * 70) % 255, 20))
    return image


def look(folder: Path):
    pictures = list_pictures(folder)
    looks = Looks().of([picture.path for picture in pictures], 60)
    return pictures, looks, near_twins(looks)


def test_rescaled_recompressed_and_trimmed_copies_are_twins_and_other_pictures_are_not(tmp_path):
    one = drawing(1)
    one.save(tmp_path / "a.png")
    one.resize((400, 400)).save(tmp_path / "b.jpg", quality=60)
    one.crop((2, 2, 254, 254)).save(tmp_path / "c.png")
    for seed in range(2, 9):
        drawing(seed).save(tmp_path / f"other{seed}.png")
    _, _, twins = look(tmp_path)
    assert {path.name: first.name for path, first in twins.items()} == {"b.jpg": "a.png", "c.png": "a.png"}


def test_the_example_has_no_twins():
    _, looks, twins = look(Path(__file__).parents[1] / "examples" / "riso")
    assert len(looks) > 10 and not twins


def test_what_is_wrong_is_marked(tmp_path):
    drawing(1, 64).save(tmp_path / "tiny.png")
    drawing(2, 600).save(tmp_path / "fine.png")
    (tmp_path / "cut.png").write_bytes(png(size=300)[:-60])
    (tmp_path / "fine.txt").write_text("a caption")
    pictures, looks, twins = look(tmp_path)
    marks = marks_of(pictures, looks, twins, RunConfig(resolution=512))
    found = {path.name: [mark.kind for mark in kinds] for path, kinds in marks.items()}
    assert found == {"cut.png": ["unreadable", "no caption"], "fine.png": [], "tiny.png": ["small", "no caption"]}


def test_pictures_are_cut_as_the_trainer_cuts_them(tmp_path):
    from fluxcore.dataset.layout import lay_out

    drawing(1).resize((900, 600)).save(tmp_path / "a.png")
    for config in (RunConfig(resolution=512), RunConfig(resolution=512, enable_bucket=True)):
        [example] = lay_out(config, tmp_path).examples
        assert trained_size((900, 600), config) == example.size


def test_looks_are_kept_and_a_page_looks_at_few_at_a_time(tmp_path, monkeypatch):
    for seed in range(4):
        drawing(seed, 32).save(tmp_path / f"{seed}.png")
    paths = sorted(tmp_path.iterdir())
    looks = Looks()
    assert len(looks.of(paths, 0.0)) == 1 and len(looks.of(paths, 0.0)) == 2
    assert len(looks.of(paths, 60)) == 4
    monkeypatch.setattr("fluxcore.dataset.looks.look_at", lambda path: pytest.fail("it was looked at already"))
    assert len(looks.of(paths, 60)) == 4


def pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_zip_is_its_files_whatever_their_folders(tmp_path):
    inside = {"set/b.png": png("blue"), "set/b.txt": b"blue", "a.png": png(), "__MACOSX/a.png": b"x"}
    data = pack(inside | {"../../etc.png": png("green"), "notes.pdf": b"%PDF"})
    taken = take_files(tmp_path, [("all.zip", io.BytesIO(data))])
    assert taken.pictures == 2 and taken.captions == 1
    assert len(taken.problems) == 1 and "notes.pdf" in taken.problems[0]
    assert {path.parent for path in tmp_path.rglob("*.png")} == {tmp_path}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (pack({"bomb.png": b"\0" * 30_000_000}), "30 MB unpacked"),
        (pack({f"{i}.txt": b"x" for i in range(2001)}), "2,001 files"),
        (b"PK no zip at all", "no zip that can be read"),
        (pack({"a.png": png()})[:-30], "no zip that can be read"),
    ],
    ids=["bomb", "many files", "no zip", "cut short"],  # made of the bytes they would hold the time of day
)
def test_bombs_and_broken_zips_are_refused(tmp_path, data, says):
    taken = take_files(tmp_path, [("all.zip", io.BytesIO(data)), ("b.png", io.BytesIO(png()))])
    assert says in taken.problems[0] and taken.pictures == 1
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]


def test_words_of_captions():
    assert replaced("A photo of a cat", "a photo of ", "", False) == "a cat"
    assert replaced("A photo of a cat", "a photo of ", "", True) == "A photo of a cat"
    assert replaced("a.b", ".", r"\1", True) == r"a\1b"
    assert has_trigger("my P3T, here", "p3t") and not has_trigger("p3ts", "p3t") and not has_trigger(None, "p3t")
    prompts = "a cat --w 64\n\n# no\nP3T alone"
    assert with_trigger(prompts, "p3t") == "p3t, a cat --w 64\n\n# no\nP3T alone"
    assert with_trigger(prompts, "") == prompts
    assert (
        caption_with("#1 cat", "p3t", "") == "p3t, #1 cat" and caption_with("a R1so cat", "p3t", "r1so") == "a p3t cat"
    )
    assert caption_with("my P3T", "p3t", "") == "my P3T" and caption_with(None, "p3t", "") == "p3t"
    former = "r1so, a cat\na R1so print of a dog\nr1son"
    assert with_trigger(former, "p3t", "r1so") == "p3t, a cat\na p3t print of a dog\np3t, r1son"


def captions_of(outputs) -> list[str | None]:
    from studio.drafts import newest_draft

    return [picture.caption for picture in list_pictures(newest_draft(outputs).folder.dataset)]


def test_captions_are_changed_together_and_back(outputs):
    app = open_page()
    app.text_input(key="form.concept_sentence").set_value("p3t").run()
    add_pictures(outputs)
    app.run()
    for area in [area for area in app.text_area if area.key.startswith("caption.")][:2]:
        area.set_value("a photo of a cat")
    app.run()
    assert captions_of(outputs) == ["a photo of a cat", "a photo of a cat", None]
    app.text_input(key="captions-find").set_value("photo").run()
    app.text_input(key="captions-replace").set_value("print").run()
    app.button(key="captions-do-replace").click().run()
    assert captions_of(outputs) == ["a print of a cat", "a print of a cat", None]
    app.button(key="captions-trigger").click().run()
    assert captions_of(outputs) == ["p3t, a print of a cat", "p3t, a print of a cat", "p3t"]
    shown = [area.value for area in app.text_area if area.key.startswith("caption.")]
    assert shown == captions_of(outputs), "the fields show what the files have"
    app.button(key="captions-undo").click().run()
    assert captions_of(outputs) == ["a print of a cat", "a print of a cat", None]
    next(area for area in app.text_area if area.key.startswith("caption.")).set_value("mine").run()
    assert "captions-undo" not in [button.key for button in app.button], "one caption is no change of several"


def test_captions_that_a_model_replaced_come_back_after_a_reload(outputs, monkeypatch):
    def caption(_, job, folder, trigger, *, all_pictures):
        caption_folder(folder, lambda image: "a model's", lambda *far: None, trigger, every=all_pictures)

    monkeypatch.setattr("studio.captioner.caption_pictures", caption)
    app = open_page()
    app.text_input(key="form.concept_sentence").set_value("p3t").run()
    add_pictures(outputs)
    app.run()
    next(area for area in app.text_area if area.key.startswith("caption.")).set_value("mine").run()
    app.button(key="caption-bare").click().run()
    assert captions_of(outputs) == ["mine", "p3t, a model's", "p3t, a model's"]
    app.button(key="caption-all").click().run()
    assert captions_of(outputs) == ["p3t, a model's"] * 3
    app = open_page()
    undo = app.button(key="captions-undo")
    assert undo.label == "Undo the change of 1 caption"
    undo.click().run()
    assert captions_of(outputs) == ["mine", "p3t, a model's", "p3t, a model's"]
    assert "captions-undo" not in [button.key for button in app.button]
    monkeypatch.setattr("studio.captioner.is_running", lambda draft: True)
    app.button(key="caption-all").click().run()
    assert captions_of(outputs)[0] == "mine" and app.button(key="captions-trigger").disabled


def test_a_caption_that_another_tab_wrote_is_shown_and_not_replaced_silently(outputs):
    one, two = open_page(), open_page()
    one.text_input(key="form.lora_name").set_value("cat").run()
    add_pictures(outputs, 1)
    one.run()
    two.run()
    key = next(area.key for area in one.text_area if area.key.startswith("caption."))
    one.text_area(key=key).set_value("from one").run()
    two.text_area(key=key).set_value("from two").run()
    assert captions_of(outputs) == ["from two"] and "from one" in answered(two).toast[0].value
    one.run()
    assert one.text_area(key=key).value == "from two"


def test_two_tabs_say_what_the_other_did(outputs):
    one, two = open_page(), open_page()
    one.text_input(key="form.lora_name").set_value("cat").run()
    two.run()
    assert two.text_input(key="form.lora_name").value == "cat"
    one.number_input(key="form.network_dim").set_value(16).run()
    two.run()
    assert two.number_input(key="form.network_dim").value == 16 and "LoRA rank" in answered(two).toast[0].value
    one.text_input(key="form.lora_name").set_value("one").run()
    two.text_input(key="form.lora_name").set_value("two").run()
    assert any("one" in toast.value and "stands now" in toast.value for toast in answered(two).toast)
    one.run()
    assert one.text_input(key="form.lora_name").value == "two"


def test_a_new_trigger_word_takes_the_place_of_the_former_one(outputs):
    app = open_page()
    app.text_input(key="form.concept_sentence").set_value("r1so").run()
    add_pictures(outputs)
    for picture in list_pictures(newest_draft(outputs).dataset):
        write_caption(picture.path, f"r1so, {picture.path.stem}")
    app.text_area(key="form.sample_prompts").set_value("r1so a cat\nr1so, a dog\na bee").run()
    app.text_input(key="form.concept_sentence").set_value("z3bra").run()
    app.text_input(key="form.lora_name").set_value("cat").run()
    assert "No caption has “z3bra”" in text(app), "said where it is started"
    assert app.button(key="captions-trigger").label == "Put “z3bra” in the place of “r1so”"
    app.button(key="captions-trigger").click().run()
    app.button(key="prompts-trigger").click().run()
    assert captions_of(outputs) == ["z3bra, 0", "z3bra, 1", "z3bra, 2"] and "No caption has" not in text(app)
    assert app.text_area(key="form.sample_prompts").value == "z3bra a cat\nz3bra, a dog\nz3bra, a bee"


def test_what_a_trigger_word_was_while_it_was_typed_is_no_former_one(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("bee").run()
    add_pictures(outputs)
    for picture in list_pictures(newest_draft(outputs).dataset):
        write_caption(picture.path, "a print of a bee")
    for word in ("a", "ap", "appl3", "ap", "a", "b", "b33"):
        app.text_input(key="form.concept_sentence").set_value(word).run()
    assert newest_draft(outputs).triggers == ["appl3", "b33"]
    assert app.button(key="captions-trigger").label == "Put “b33” in front"


def test_tabs_that_were_opened_before_anything_was_typed_have_one_draft(outputs):
    one, two = open_page(), open_page()
    one.text_input(key="form.lora_name").set_value("aaa").run()
    two.text_input(key="form.concept_sentence").set_value("bbb").run()
    one.number_input(key="form.network_dim").set_value(16).run()
    assert len(list((outputs / ".drafts").iterdir())) == 1
    for tab in (one, two, open_page()):
        tab.run()
        assert tab.text_input(key="form.lora_name").value == "aaa"
        assert tab.text_input(key="form.concept_sentence").value == "bbb"
        assert tab.number_input(key="form.network_dim").value == 16
