"""Which samples count, and all of them as one picture."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from fluxcore.errors import UserError
from fluxcore.runs import RunFolder, RunState, load_run
from fluxcore.runs import sample_grid as grid
from fluxcore.runs.sample_grid import GAP, HEADER, LABEL, sample_grid
from fluxcore.runs.samples import MOST_STEPS, by_prompt, drawn, index_of, spread, step_of
from tests.fake_runs import PROMPTS, FakeRun


@pytest.fixture
def run(tmp_path) -> FakeRun:
    return FakeRun(tmp_path / "outputs", "cat")


def read(run: FakeRun) -> tuple[RunFolder, RunState]:
    return load_run(run.folder.path.parent, "cat")


def one(run: FakeRun, step: int, index: int, colour: str, size: tuple[int, int] = (512, 512), prompt: str = "") -> str:
    """A sample of one colour; its path as its event has it."""
    run.folder.samples.mkdir(exist_ok=True)
    path = run.folder.sample(index, 1, step=step)
    path = path.with_stem(f"{path.stem}_{colour}")
    Image.new("RGB", size, colour).save(path)
    data = {"step": step, "epoch": 1, "index": index, "prompt": prompt or PROMPTS[0], "seed": 1}
    run.append("trainer", "sample.saved", data | {"path": run.folder.relative(path)})
    return run.folder.relative(path)


def picture(run: FakeRun) -> Image.Image:
    return Image.open(io.BytesIO(sample_grid(*read(run)))).convert("RGB")


def cell(image: Image.Image, column: int, row: int, side: int = 256) -> tuple[int, ...]:
    """The colour in a cell's middle."""
    place = LABEL + column * (side + GAP) + side // 2, 2 * HEADER + row * (side + GAP) + side // 2
    colour = image.getpixel(place)
    assert isinstance(colour, tuple)
    return colour


def test_of_a_step_drawn_again_the_later_counts_and_only_files_that_are_there(run):
    gone = one(run, 10, 0, "red")
    one(run, 20, 1, "red")
    again = one(run, 20, 1, "blue")
    before = one(run, 0, 1, "red")
    (run.folder.path / gone).unlink()
    run.append("trainer", "sample.saved", {"step": 5, "index": 0, "path": "../../elsewhere.png"})
    found = drawn(*read(run))
    assert [sample["path"] for sample in found] == [before, again]
    assert [(step_of(sample), index_of(sample)) for sample in found] == [(0, 1), (20, 1)]
    assert list(by_prompt(found)) == [1]


def test_steps_are_spread_with_first_and_last():
    assert spread([1, 2, 5]) == [1, 2, 5]
    shown = spread(list(range(0, 1010, 10)))
    assert len(shown) == len(set(shown)) == MOST_STEPS and (shown[0], shown[-1]) == (0, 1000)
    assert {b - a for a, b in zip(shown, shown[1:], strict=False)} <= {90, 100}


def test_prompts_down_and_steps_across(run):
    one(run, 0, 0, "red")
    one(run, 0, 1, "blue")
    one(run, 1200, 0, "lime", size=(1024, 512))
    image = picture(run)
    assert image.size == (LABEL + 2 * (256 + GAP) + GAP, 2 * HEADER + 2 * (256 + GAP))
    assert [cell(image, 0, 0), cell(image, 0, 1), cell(image, 1, 0)] == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert cell(image, 1, 1) == (238, 238, 238), "nothing was drawn there"
    assert image.getpixel((LABEL + 256 + GAP + 128, 2 * HEADER + 20)) == (255, 255, 255), "the sides' ratio is kept"
    boxes = (0, 0, LABEL, HEADER), (LABEL, HEADER, image.width, 2 * HEADER), (0, 2 * HEADER, LABEL, HEADER + 256)
    for box in boxes:
        darkest, _ = image.crop(box).convert("L").getextrema()
        assert darkest < 120, "a title, steps, prompts"


def test_it_is_bounded_and_says_what_it_leaves_out(run, monkeypatch):
    monkeypatch.setattr(grid, "MOST_PROMPTS", 2)
    for step in range(0, 40, 2):
        one(run, step, 0, "red", size=(64, 64), prompt="word " * 200 + "y" * 500)
    for index in (1, 2, 3):
        one(run, 0, index, "blue", size=(2000, 64))
    image = picture(run)
    assert image.size == (LABEL + 12 * (256 + GAP) + GAP, 2 * HEADER + 2 * (256 + GAP) + HEADER)
    said = image.crop((0, image.height - HEADER, LABEL * 2, image.height)).convert("L").getextrema()
    assert said[0] < 120
    assert grid._left_out(8, "step") == ["8 more steps left out"] and grid._left_out(0, "step") == []


def test_small_pictures_get_small_cells_and_broken_ones_are_left_empty(run, monkeypatch):
    one(run, 0, 0, "red", size=(64, 64))
    broken = run.folder.path / one(run, 1, 0, "lime", size=(64, 64))
    huge = one(run, 2, 0, "blue", size=(120, 120))
    broken.write_bytes(broken.read_bytes()[:60])
    monkeypatch.setattr(grid, "MOST_PIXELS", 100 * 100)
    image = picture(run)
    assert image.size == (LABEL + 3 * (128 + GAP) + GAP, 2 * HEADER + 128 + GAP) and huge
    assert [cell(image, column, 0, 128) for column in range(3)] == [(255, 0, 0), (238, 238, 238), (238, 238, 238)]


def test_lines_are_broken_between_words_and_end_in_dots():
    from PIL import ImageFont

    font = ImageFont.load_default(15)
    for text in ("a grinning cat on a sailboat in the evening sun", "x" * 90, "", "äöü 日本 " * 30):
        lines = grid._wrapped(text, font, 120, 3).split("\n")
        assert len(lines) <= 3 and all(font.getlength(line) <= 120 for line in lines)
    assert grid._wrapped("a red apple", font, 300, 3) == "a red apple"
    assert grid._wrapped("one two", font, 40, 3) == "one\ntwo"
    assert grid._wrapped("x" * 90, font, 100, 2).endswith("...")


def test_a_run_without_samples_says_so(run):
    with pytest.raises(UserError, match="cat has no samples"):
        sample_grid(*read(run))
