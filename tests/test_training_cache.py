"""Encoded pictures and captions on disk: shared, never stale, mended where they are torn."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fluxcore.config import RunConfig, parse_config
from fluxcore.dataset import PictureError
from fluxcore.dataset.layout import lay_out
from fluxcore.models.flux import FLUX_1
from fluxcore.models.loading import PromptEmbedding
from fluxcore.training import cache as cache_module
from fluxcore.training import data as data_module
from fluxcore.training.cache import Cache, encode_pictures_into, load_pixels
from fluxcore.training.captions import caption_forms
from fluxcore.training.data import TrainingData


class Text:
    """A text encoder that counts what it is asked for."""

    asked: list[str]

    def __init__(self) -> None:
        self.asked = []

    def encode(self, prompt: str) -> PromptEmbedding:
        self.asked.append(prompt)
        value = torch.full((4,), float(len(prompt)))
        return PromptEmbedding(value, value.repeat(3, 1).bfloat16())


class Place:
    """A dataset of two captioned pictures, a model's folder and a cache, encoded as a training does it."""

    def __init__(self, folder: Path) -> None:
        self.dataset, self.model, self.cache = folder / "dataset", folder / "model", folder / "cache"
        self.dataset.mkdir()
        for part in ("vae", "text_encoder"):
            (self.model / part).mkdir(parents=True)
            (self.model / part / "w.safetensors").write_bytes(b"weights")
        for name in ("a", "b"):
            Image.new("RGB", (32, 32), "red" if name == "a" else "blue").save(self.dataset / f"{name}.png")
            (self.dataset / f"{name}.txt").write_text(f"caption {name}")
        self.pixels: list[torch.Tensor] = []
        self.family = replace(FLUX_1, encode_pictures=self._encode)

    def _encode(self, pipeline: object, pixels: torch.Tensor) -> torch.Tensor:
        self.pixels.append(pixels)
        return pixels[:, :, ::2, ::2]

    def encode(self, **settings: object) -> tuple[TrainingData, list[str], int]:
        """The data, the captions that were encoded for it, and how many pictures were."""
        config = parse_config({"resolution": 32, "num_repeats": 1, **settings})
        text, before = Text(), len(self.pixels)
        data = TrainingData(config, lay_out(config, self.dataset), Cache(self.cache), self.model, 8, torch.float32)
        data.encode_text(["a sample"], lambda: text, lambda *_: lambda *_: None)  # type: ignore[arg-type,return-value]
        data.encode_pictures(self.family, None, lambda *_: lambda *_: None)  # type: ignore[arg-type]
        return data, text.asked, len(self.pixels) - before


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_second_attempt_encodes_nothing_and_loads_no_text_encoder(place: Place) -> None:
    first, asked, pictures = place.encode()
    assert sorted(asked) == ["", "a sample", "caption a", "caption b"] and pictures == 2
    second, asked, pictures = place.encode()
    assert (asked, pictures) == ([], 0)
    for one, other in zip(first.step(1), second.step(1), strict=True):
        assert torch.equal(one.clean, other.clean)
        assert torch.equal(one.prompts[0].sequence, other.prompts[0].sequence)
        assert one.prompts[0].sequence.dtype == torch.bfloat16


def test_an_edited_caption_is_never_trained_stale(place: Place) -> None:
    place.encode()
    (place.dataset / "a.txt").write_text("another caption")
    data, asked, pictures = place.encode()
    assert (asked, pictures) == (["another caption"], 0)
    lengths = {int(batch.prompts[0].pooled[0]) for step in (1, 2) for batch in data.step(step)}
    assert lengths == {len("another caption"), len("caption b")}
    assert len(list(place.cache.glob("text-*"))) == 4  # that of before is gone


def test_an_edited_picture_another_size_and_a_replaced_model_are_encoded_anew(place: Place) -> None:
    place.encode()
    Image.new("RGB", (32, 32), "green").save(place.dataset / "a.png")
    assert place.encode()[1:] == ([], 1)
    assert place.encode(resolution=64)[1:] == ([], 2)
    os.utime(place.model / "text_encoder" / "w.safetensors", (1, 1))
    assert len(place.encode(resolution=64)[1]) == 4
    (place.model / "vae" / "w.safetensors").write_bytes(b"other weights")
    assert place.encode(resolution=64)[1:] == ([], 2)


@pytest.mark.parametrize("spoil", ["cut", "changed", "empty", "gone"])
def test_a_torn_file_is_made_anew(place: Place, spoil: str) -> None:
    whole, _, _ = place.encode()
    for kind in ("latents", "text"):
        file = sorted(place.cache.glob(f"{kind}-*"))[0]
        before = file.read_bytes()
        if spoil == "cut":
            file.write_bytes(before[:-4])
        elif spoil == "changed":
            file.write_bytes(before[:-4] + b"\0\0\1\1")
        elif spoil == "empty":
            file.write_bytes(b"")
        else:
            file.unlink()
        mended, asked, pictures = place.encode()
        assert len(asked) + pictures == 1
        assert file.read_bytes() == before
        for step in (1, 2):
            assert torch.equal(whole.step(step)[0].clean, mended.step(step)[0].clean)


def test_nothing_unfinished_is_left_and_a_full_disk_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fluxcore.atomic.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        place.encode()
    assert list(place.cache.iterdir()) == []


def test_a_flipped_picture_is_encoded_flipped_and_drawn_half_of_the_time(place: Place) -> None:
    for name in ("a", "b"):
        image = Image.new("RGB", (32, 32), "black")
        image.paste("white", (0, 0, 16, 32))
        image.save(place.dataset / f"{name}.png")
    data, _, pictures = place.encode(flip_aug=True)
    assert pictures == 2  # both files have the same bytes, so they share what is encoded
    left = [float(data.step(step)[0].clean[0, 0, 0, 0]) for step in range(1, 61)]
    assert set(left) == {-1.0, 1.0} and 15 < left.count(1.0) < 45
    assert left == [float(data.step(step)[0].clean[0, 0, 0, 0]) for step in range(1, 61)]


def test_shuffled_tags_keep_the_first_ones_and_every_form_is_trained(place: Place) -> None:
    for name in ("a", "b"):
        (place.dataset / f"{name}.txt").write_text("r1so, one, two, three, four")
    settings = {"shuffle_caption": True, "keep_tokens": 2, "shuffle_caption_forms": 4}
    config: RunConfig = parse_config({"resolution": 32, **settings})
    forms = caption_forms(lay_out(config, place.dataset).examples[0], 42, 4)
    assert len(set(forms)) > 1 and all(form.startswith("r1so, one, ") for form in forms)
    assert {frozenset(form.split(", ")) for form in forms} == {frozenset(("r1so", "one", "two", "three", "four"))}
    data, asked, _ = place.encode(**settings)
    assert set(forms) < set(asked)
    seen = {data_module.prompt_embedding(data._cache, data._texts[form]).pooled.data_ptr() for form in forms}
    drawn = {batch.prompts[0].pooled.data_ptr() for step in range(1, 60) for batch in data.step(step)}
    assert drawn == seen


def test_captions_are_dropped_at_their_rate(place: Place) -> None:
    data, _, _ = place.encode(caption_dropout_rate=0.25)
    lengths = [int(data.step(step)[0].prompts[0].pooled[0]) for step in range(1, 201)]
    assert 30 < lengths.count(0) < 70


def test_what_does_not_fit_into_memory_is_read_from_the_disk(tmp_path: Path) -> None:
    cache = Cache(tmp_path, kept_bytes=100)
    for number in range(3):
        cache[f"k{number}"] = {"x": torch.full((20,), float(number))}
    assert len(cache._kept) == 1
    assert [float(cache[f"k{number}"]["x"][0]) for number in range(3)] == [0.0, 1.0, 2.0]
    with pytest.raises(KeyError):
        cache["k3"]


def test_a_picture_is_scaled_and_cut_at_its_centre(tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 32), "black")
    image.paste("white", (32, 0, 64, 32))
    image.save(tmp_path / "a.png")
    assert load_pixels(tmp_path / "a.png", (96, 32)).shape == (3, 32, 96)
    middle = load_pixels(tmp_path / "a.png", (32, 32))
    assert middle.shape == (3, 32, 32) and float(middle[:, :, 4:-4].min()) > 0.9


class Encoding:
    """Pictures that are read and encoded without any: what was asked for, in order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 200) -> None:
        self.cache, self.read, self.encoded = Cache(folder), list[str](), list[int]()
        self.wanted = {f"k{number:03}": (Path(f"{number}.png"), (16, 16), False) for number in range(count)}
        self.bad = ""
        monkeypatch.setattr(cache_module, "load_pixels", self._load)

    def _load(self, path: Path, size: tuple[int, int]) -> torch.Tensor:
        self.read.append(path.name)
        if path.name == self.bad:
            raise PictureError(f"{path.name} can't be read")
        return torch.full((3, *size), float(path.stem))

    def run(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        def encode(pixels: torch.Tensor) -> torch.Tensor:
            self.encoded.append(int(pixels[0, 0, 0, 0]))
            return pixels

        encode_pictures_into(self.cache, encode, self.wanted, 3, on_progress)


def test_pictures_are_read_a_few_ahead_and_kept_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding, ahead = Encoding(tmp_path, monkeypatch), list[int]()
    encoding.run(lambda done, total: ahead.append(len(encoding.read) - done))
    assert encoding.encoded == list(range(200)) and len(encoding.read) == 200
    assert max(ahead) <= 3 * cache_module.READ_AHEAD
    assert float(encoding.cache["k117"]["latents"][0, 0, 0]) == 117


def test_a_stop_in_mid_encoding_reads_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = Encoding(tmp_path, monkeypatch)

    def stop_at_5(done: int, total: int) -> None:
        if done == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        encoding.run(stop_at_5)
    assert len(encoding.read) <= 5 + 3 * cache_module.READ_AHEAD
    assert "k004" in encoding.cache and "k005" not in encoding.cache


def test_a_picture_that_can_not_be_read_ends_the_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = Encoding(tmp_path, monkeypatch)
    encoding.bad = "7.png"
    with pytest.raises(PictureError, match="7.png"):
        encoding.run()
    assert len(encoding.read) <= 8 + 3 * cache_module.READ_AHEAD and encoding.encoded == list(range(7))
