"""Buckets, subsets and steps: which picture is trained at which size, how often, and in whose company."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fluxcore.config import ConfigError, parse_config
from fluxcore.dataset.buckets import bucket_sizes, choose_bucket
from fluxcore.dataset.layout import lay_out, picture_size
from fluxcore.training.randomness import epoch_batches, step_items

LIMITS = {"smallest": 256, "largest": 1024, "step": 64}


def picture(path: Path, size: tuple[int, int] = (64, 64), caption: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    if caption:
        path.with_suffix(".txt").write_text(caption)
    return path


@pytest.mark.parametrize(
    ("size", "resolution", "bucket"),
    [
        ((1000, 1000), 512, (512, 512)),
        ((3000, 2000), 512, (640, 384)),  # 1.67 is nearer to 1.5 than 576x448, 1.29
        ((2000, 3000), 512, (384, 640)),
        ((5000, 500), 512, (1024, 256)),
        ((300, 400), 512, (256, 384)),  # too small for 448x576: rounded down, not enlarged
        ((40, 40), 512, (64, 64)),  # below one step there is nothing smaller
        ((130, 98), 64, (80, 48)),  # a small resolution has steps of 16
        ((50, 90), 64, (48, 80)),
    ],
)
def test_a_picture_goes_into_the_bucket_of_its_shape(
    size: tuple[int, int], resolution: int, bucket: tuple[int, int]
) -> None:
    assert choose_bucket(size, resolution, **LIMITS) == bucket


def test_upscaling_has_to_be_asked_for() -> None:
    assert choose_bucket((300, 400), 512, **LIMITS, no_upscale=False) == (448, 576)
    assert choose_bucket((300, 400), 512, **LIMITS) == (256, 384)


@pytest.mark.parametrize("resolution", [64, 128, 256, 512, 768, 1024])
def test_buckets_keep_area_step_and_limits(resolution: int) -> None:
    step, least = (16, resolution // 2) if resolution < 256 else (64, 256)
    sizes = bucket_sizes(resolution, 256, 1024, 64)
    assert (resolution, resolution) in sizes
    for width, height in sizes:
        assert width * height <= resolution**2
        assert width % step == height % step == 0
        assert least <= min(width, height) and max(width, height) <= 1024


def test_a_turned_photo_counts_as_people_see_it(tmp_path: Path) -> None:
    image = Image.new("RGB", (200, 100), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert picture_size(tmp_path / "turned.jpg") == (100, 200)
    assert picture_size(picture(tmp_path / "plain.png", (200, 100))) == (200, 100)


def test_batches_never_mix_sizes_and_lose_nothing(tmp_path: Path) -> None:
    for number, size in enumerate([(64, 64)] * 5 + [(96, 48)] * 3 + [(48, 96)] * 2):
        picture(tmp_path / f"{number}.png", size)
    config = parse_config({"resolution": 64, "enable_bucket": True, "train_batch_size": 2, "num_repeats": 3})
    layout = lay_out(config, tmp_path)
    assert len({one.size for one in layout.examples}) == 3
    assert layout.steps_per_epoch == 8 + 5 + 3
    assert layout.total_steps == 16 * 16
    orders = []
    for epoch in (1, 2):
        batches = epoch_batches(42, epoch, layout.groups, layout.batch_sizes)
        assert len(batches) == layout.steps_per_epoch
        assert sorted(sum(batches, ())) == list(range(30))
        for batch in batches:
            assert len({layout.examples[layout.items[item]].size for item in batch}) == 1
        orders.append(batches)
    assert orders[0] != orders[1]


def test_accumulation_takes_the_next_batches_and_ends_with_the_epoch(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / f"{number}.png")
    layout = lay_out(parse_config({"num_repeats": 1, "gradient_accumulation_steps": 2}), tmp_path)
    assert layout.steps_per_epoch == 3
    steps = [step_items(42, step, layout.groups, layout.batch_sizes, 2) for step in (1, 2, 3, 4)]
    assert [len(step) for step in steps] == [2, 2, 1, 2]
    assert sorted(item for step in steps[:3] for batch in step for item in batch) == [0, 1, 2, 3, 4]


def test_each_picture_is_trained_at_every_resolution(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (2000, 2000))
    config = parse_config({"resolution": 512, "extra_resolutions": "256, 768,512", "num_repeats": 2})
    layout = lay_out(config, tmp_path)
    assert [one.size for one in layout.examples] == [(512, 512), (256, 256), (768, 768)]
    assert len(layout.items) == 6 and len(layout.pictures) == 1
    with pytest.raises(ConfigError, match="multiples of 16"):
        parse_config({"extra_resolutions": "500"})


def test_subsets_have_settings_of_their_own_over_the_datasets_and_the_runs(tmp_path: Path) -> None:
    picture(tmp_path / "cats" / "a.png", caption="r1so, cat")
    picture(tmp_path / "dogs" / "b.png")
    file = tmp_path / "data.toml"
    file.write_text("""
        [general]
        shuffle_caption = true
        [[datasets]]
        resolution = [768, 768]
        batch_size = 3
        [[datasets.subsets]]
        image_dir = "cats"
        num_repeats = 4
        [[datasets]]
        [[datasets.subsets]]
        image_dir = "dogs"
        class_tokens = "r1so dog"
        keep_tokens = 2
    """)
    config = parse_config({"resolution": 512, "num_repeats": 10, "dataset_config": str(file)})
    for given in (config, parse_config({**config.model_dump(), "dataset_config": file.read_text()})):
        cats, dogs = lay_out(given, tmp_path).examples
        assert (cats.size, cats.repeats, cats.caption) == ((768, 768), 4, "r1so, cat")
        assert (dogs.size, dogs.repeats, dogs.caption) == ((512, 512), 10, "r1so dog")
        assert cats.subset.shuffle_caption and cats.subset.batch_size == 3
        assert (cats.subset.keep_tokens, dogs.subset.keep_tokens, dogs.subset.batch_size) == (1, 2, 1)


def test_regularisation_pictures_are_as_many_as_the_others(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    for name in ("x", "y"):
        picture(tmp_path / "reg" / f"{name}.png")
    toml = """
        [[datasets]]
        [[datasets.subsets]]
        image_dir = "."
        num_repeats = {}
        [[datasets.subsets]]
        image_dir = "reg"
        is_reg = true
        num_repeats = {}
    """
    for repeats, theirs, expected in ((3, 1, [5, 4]), (1, 2, [2, 1]), (1, 10, [3])):
        layout = lay_out(parse_config({"dataset_config": toml.format(repeats, theirs)}), tmp_path)
        assert [one.repeats for one in layout.examples if one.subset.is_reg] == expected


def test_held_out_pictures_are_not_trained_and_the_same_whatever_is_added(tmp_path: Path) -> None:
    for number in range(10):
        picture(tmp_path / f"{number}.png")
    config = parse_config({"validation_split": 0.2, "num_repeats": 1, "extra_resolutions": "256"})
    layout = lay_out(config, tmp_path)
    held = {one.picture.path.name for one in layout.held_out}
    assert len(held) == len(layout.held_out) == 2 and len(layout.pictures) == 8
    assert not held & {one.path.name for one in layout.pictures}
    assert {one.size for one in layout.held_out} == {(512, 512)}
    picture(tmp_path / "new.png")
    assert {one.picture.path.name for one in lay_out(config, tmp_path).held_out} & held
    for path in sorted(tmp_path.glob("*.png"))[1:]:
        path.unlink()
    with pytest.raises(ConfigError, match="two pictures"):
        lay_out(config, tmp_path)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[[datasets", "is no TOML"),
        ("[[datasets]]\n", "has no .*subsets"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1", "without image_dir"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeat = 1", "did you mean num_repeats"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = 0", "num_repeats must be at least 1"),
        ("[[datasets]]\nresolution = [512, 768]\n[[datasets.subsets]]\nimage_dir = 'a'", "enable_bucket"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nis_reg = true", "regularisation pictures only"),
        ("[data]\nx = 1", r"\[general\] and \[\[datasets\]\]"),
        ("/nowhere/data.toml", "can't be read"),
    ],
)
def test_a_wrong_dataset_config_is_one_sentence(tmp_path: Path, toml: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        lay_out(parse_config({"dataset_config": toml}), tmp_path)
    assert list(caught.value.fields) == ["dataset_config"] and "\n" not in str(caught.value)
