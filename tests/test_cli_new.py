"""`new`: every bad input has its clear message, and leaves nothing behind."""

import json
import os

import pytest
from cli_tools import bomb, call, pictures, run
from PIL import Image

from fluxcore.log import read_events


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"


def config_of(outputs, name):
    return [event for event in read_events(outputs / name) if event.type == "config.saved"][-1].data["config"]


def left_behind(outputs):
    return sorted(os.listdir(outputs)) if outputs.exists() else []


def test_a_new_run_has_its_config_and_a_copy_of_its_pictures(capsys, tmp_path, outputs):
    source = pictures(tmp_path / "photos")
    answer = call(capsys, "new", "my-cat", "--images", source, "--trigger", "ohwx cat", "--outputs", outputs)
    assert (answer.code, answer.out.strip()) == (0, str(outputs / "my-cat"))
    assert sorted(os.listdir(outputs / "my-cat" / "dataset")) == sorted(os.listdir(source))
    assert config_of(outputs, "my-cat")["concept_sentence"] == "ohwx cat"
    assert json.loads((outputs / "my-cat" / "ui_state.json").read_text())["status"] == "draft"
    assert call(capsys, "status", "my-cat", "--json", "--outputs", outputs).json()[0]["state"] == "draft"


@pytest.mark.parametrize("name", ["a/b", "..", "../x", "my cat", "😀", ".hidden", "-x", "x" * 65, ""])
def test_a_wrong_name(capsys, tmp_path, outputs, name):
    answer = call(capsys, "new", "--images", pictures(tmp_path / "p"), "--outputs", outputs, "--", name)
    assert answer.code == 64 and "name" in answer.line
    assert left_behind(outputs) == []


def test_a_name_that_is_taken_in_any_case(capsys, tmp_path, outputs):
    source = pictures(tmp_path / "p")
    assert call(capsys, "new", "Cat", "--images", source, "--outputs", outputs).code == 0
    before = (outputs / "Cat" / "events.jsonl").read_bytes()
    answer = call(capsys, "new", "cat", "--images", source, "--outputs", outputs)
    assert answer.code == 64 and "'Cat' is taken" in answer.line
    assert left_behind(outputs) == ["Cat"]
    assert (outputs / "Cat" / "events.jsonl").read_bytes() == before


def test_no_images(capsys, tmp_path, outputs):
    (tmp_path / "empty").mkdir()
    for source, word in (("empty", "no pictures"), ("nowhere", "there is no folder")):
        answer = call(capsys, "new", "x", "--images", tmp_path / source, "--outputs", outputs)
        assert answer.code == 64 and word in answer.line
    assert call(capsys, "new", "x", "--outputs", outputs).code == 64
    assert left_behind(outputs) == []


def truncated(path):
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (truncated, "cut short"),
        (bomb, "pixels"),
        (lambda path: path.write_text("not at all"), "not a picture"),
        (lambda path: path.write_bytes(b""), "not a picture"),
    ],
)
def test_a_picture_that_can_not_be_used(capsys, tmp_path, outputs, make, word):
    source = pictures(tmp_path / "p")
    make(source / "bad.png")
    answer = call(capsys, "new", "x", "--images", source, "--outputs", outputs)
    assert answer.code == 64
    assert "bad.png" in answer.line and word in answer.line
    assert left_behind(outputs) == []


def test_a_caption_without_its_picture_is_left_out_aloud(capsys, tmp_path, outputs):
    source = pictures(tmp_path / "p")
    (source / "gone.txt").write_text("where is it?")
    answer = call(capsys, "new", "x", "--images", source, "--outputs", outputs)
    assert answer.code == 0 and "gone.txt" in answer.line
    assert not (outputs / "x" / "dataset" / "gone.txt").exists()


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("max_train_epochs=0", "at least 1"),
        ("max_train_epochs=99999", "at most"),
        ("max_train_epochs=many", "max_train_epochs"),
        ("learning_rate=fast", "learning_rate"),
        ("learning_rate=-1", "more than 0"),
        ("learning_rate=nan", "learning_rate"),
        ("caption_dropout_rate=nan", "caption_dropout_rate"),
        ("max_grad_norm=inf", "max_grad_norm"),
        ("resolution=500", "multiple of 16"),
        ("optimizer_type=magic", "optimizer_type"),
        ("vram=3G", "vram"),
        ("no_such_thing=1", "not a setting"),
        ("max_train_epochs", "key=value"),
        ("base_model=flux-9", "unknown base model"),
    ],
)
def test_a_setting_that_is_wrong(capsys, tmp_path, outputs, setting, word):
    answer = call(capsys, "new", "x", "--images", pictures(tmp_path / "p"), "--set", setting, "--outputs", outputs)
    assert answer.code == 64 and word in answer.line
    assert left_behind(outputs) == []


def test_an_unknown_base_model(capsys, tmp_path, outputs):
    answer = call(capsys, "new", "x", "--images", pictures(tmp_path / "p"), "--base", "sdxl", "--outputs", outputs)
    assert answer.code == 64 and "flux-mini" in answer.line
    assert left_behind(outputs) == []


def test_outputs_that_can_not_be_written(capsys, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for place in (blocked, blocked / "below", "/proc/fluxgym"):
        answer = call(capsys, "new", "x", "--images", pictures(tmp_path / "p"), "--outputs", place)
        assert answer.code == 64 and "can't be written" in answer.line and "--outputs" in answer.line
    assert call(capsys, "demo", "--outputs", blocked).code == 64
    assert blocked.read_text() == "in the way"


def test_precedence(capsys, tmp_path, outputs):
    """Defaults < preset < --config < --set < named options."""
    source = pictures(tmp_path / "p")
    file = tmp_path / "c.json"
    file.write_text(
        json.dumps({"lora_name": "other", "concept_sentence": "file", "network_dim": 5, "seed": 5, "zzz": 1})
    )
    answer = call(
        capsys, "new", "x", "--images", source, "--config", file, "--set", "network_dim=6", "--set",
        "concept_sentence=set=all", "--set", "seed=7", "--trigger", "named", "--outputs", outputs,
    )  # fmt: skip
    assert answer.code == 0 and "zzz" in answer.line
    config = config_of(outputs, "x")
    assert (config["lora_name"], config["concept_sentence"]) == ("x", "named")
    assert (config["network_dim"], config["seed"]) == (6, 7)
    assert config["resolution"] == 64, "flux-mini's own default is over the schema's"


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\xff"])
def test_a_config_file_that_is_none(capsys, tmp_path, outputs, text):
    file = tmp_path / "c.json"
    file.write_bytes(text.encode("latin-1"))
    answer = call(capsys, "new", "x", "--images", pictures(tmp_path / "p"), "--config", file, "--outputs", outputs)
    assert answer.code == 64 and "c.json" in answer.line
    missing = call(capsys, "new", "x", "--images", tmp_path / "p", "--config", tmp_path / "no", "--outputs", outputs)
    assert missing.code == 64 and "can't be read" in missing.line


def test_relative_paths_count_from_the_callers_directory(tmp_path):
    pictures(tmp_path / "here" / "p")
    answer = run("new", "x", "--images", "p", "--outputs", "out", cwd=tmp_path / "here")
    assert answer.code == 0, answer.err
    assert (tmp_path / "here" / "out" / "x" / "dataset" / "p0.png").is_file()
    other = run("status", "--json", cwd=tmp_path, FLUXGYM_OUTPUTS="here/out")
    assert [row["run"] for row in other.json()] == ["x"]
