"""Captions by Florence-2: the real loading and asking, of a model made on the fly; and what becomes of captions."""

from __future__ import annotations

import pytest
from PIL import Image

from fluxcore.captioning import caption_pictures
from fluxcore.captioning.florence import caption_folder, find, tidy
from fluxcore.dataset import list_pictures, write_caption
from fluxcore.errors import UserError
from fluxcore.jobs import read_job
from tests.place import wait_until
from tests.tiny_florence import make_florence


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name, color in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (80, 60), color).save(folder / f"{name}.png")
    (folder / "c.txt").write_text("mine\n")
    return folder


def captions(folder) -> list[str | None]:
    return [picture.caption for picture in list_pictures(folder)]


def test_bare_pictures_are_captioned_with_the_trigger_word_in_front(dataset):
    (dataset / "bad.png").write_bytes(b"no picture")
    said = []
    done = caption_folder(dataset, lambda image: f"{image.getpixel((0, 0))}", lambda *far: said.append(far), "p3t")
    assert done == 2 and captions(dataset) == ["p3t, (255, 0, 0)", "p3t, (0, 0, 255)", None, "mine"]
    assert said[0] == (0, 3) and said[-1] == (3, 3)
    caption_folder(dataset, lambda image: "anew", lambda *far: None, every=True)
    assert captions(dataset) == ["anew", "anew", None, "anew"]


def test_a_caption_that_a_person_writes_meanwhile_stays(dataset):
    def describe(image: Image.Image) -> str:
        write_caption(dataset / "a.png", "a person's")
        return "a model's"

    caption_folder(dataset, describe, lambda *far: None)
    assert captions(dataset) == ["a person's", "a model's", "mine"]


def test_the_models_marks_and_empty_openings_go():
    assert tidy("</s><s>The image shows a  cat on\na sofa.</s><pad>") == "a cat on a sofa."
    assert tidy("A cat.") == "A cat."


def test_a_folder_without_a_model_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        find(str(tmp_path), lambda *far: None)


def test_a_real_florence_captions_in_a_process_of_its_own(tmp_path, dataset, monkeypatch):
    model = tmp_path / "florence"
    make_florence(model)
    monkeypatch.setenv("FLUXGYM_CAPTIONER", str(model))
    caption_pictures(tmp_path, "caption-x", dataset, "p3t")
    assert wait_until(lambda: (job := read_job(tmp_path, "caption-x")) and job.state != "running", seconds=120)
    job = read_job(tmp_path, "caption-x")
    assert (job.state, job.done, job.unit) == ("done", 2, "pictures"), job
    first, second, third = captions(dataset)
    assert first.startswith("p3t, ") and second.startswith("p3t, ") and third == "mine"
    assert "<" not in first.removeprefix("p3t, ").replace("<unk>", "").replace("<image>", "")
