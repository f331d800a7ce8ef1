"""Every way to train is resumed to the bit: order, noise, captions and optimizers, in one process and few steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from fluxcore.config import parse_config
from fluxcore.runs import RunFolder, find_state, load_run, resume_choice, save_config
from fluxcore.runs.state_files import read_about, write_about
from fluxcore.training.failures import Exit, TrainingError
from fluxcore.training.order import Order, parse_arguments, take_order
from tests.training_tools import RISO, events_of, lora_of, losses_of, new_run, same, some_pictures, train_here, trained

SUBSETS = """
[general]
shuffle_caption = true
keep_tokens = 1
[[datasets]]
resolution = 64
batch_size = 2
enable_bucket = true
[[datasets.subsets]]
image_dir = "."
num_repeats = 2
flip_aug = true
[[datasets.subsets]]
image_dir = "reg"
is_reg = true
class_tokens = "picture"
[[datasets]]
resolution = 32
[[datasets.subsets]]
image_dir = "."
"""


def shapes(dataset: Path) -> None:
    """Six captioned pictures of three shapes, and two regularisation pictures."""
    some_pictures(dataset, 4)
    wide = sorted(RISO.glob("*.png"))[4]
    for name, size in (("wide", (96, 48)), ("tall", (50, 90))):
        Image.open(wide).resize(size).save(dataset / f"{name}.png")
        (dataset / f"{name}.txt").write_text(f"r1so, {name}, thing, of, many tags")
    some_pictures(dataset / "reg", 2)


WAYS: dict[str, dict[str, object]] = {
    "data": {
        "dataset_config": SUBSETS, "prior_loss_weight": 0.5, "caption_dropout_rate": 0.3,
        "gradient_accumulation_steps": 2, "network_dropout": 0.1,
    },
    "lion, huber, cosmap, uniform": {
        "optimizer_type": "lion", "learning_rate": "1e-4", "lr_scheduler": "polynomial", "lr_scheduler_power": 2,
        "loss_type": "huber", "weighting_scheme": "cosmap", "timestep_sampling": "uniform", "ema_decay": 0.9,
        "network_dim": 2,
    },
    "prodigy, dora": {
        "optimizer_type": "prodigy", "learning_rate": "1", "lr_scheduler": "cosine_with_restarts", "use_dora": True,
        "timestep_sampling": "logit_normal", "weighting_scheme": "sigma_sqrt", "network_dim": 2,
        "train_blocks": "double",
    },
    "schedule-free, rslora": {
        "optimizer_type": "adamwschedulefree", "use_rslora": True, "validation_split": 0.3, "train_layers": "attn",
        "validate_every_n_steps": 1, "timestep_sampling": "mode", "loss_type": "smooth_l1", "network_dim": 4,
    },
    "adamw8bit, lokr": {
        "optimizer_type": "adamw8bit", "network_algo": "lokr", "network_dim": 2, "network_dropout": 0.1,
        "optimizer_args": "weight_decay=0.1", "train_single_block_indices": "1-2",
    },
    "adafactor, loha": {"optimizer_type": "adafactor", "network_algo": "loha", "network_dim": 2},
}  # fmt: skip


# Parts of each kind of network that are zero before the first step.
ZERO_AT_FIRST = ("lora_up", "lora_B", "lokr_w1", "hada_w2_b", "hada_w1_b")


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_and_resumed_training_ends_bit_identical(tmp_path: Path, way: str) -> None:
    whole = new_run(tmp_path, "whole", shapes, **WAYS[way])
    train_here(whole)
    parted = new_run(tmp_path, "parted", shapes, **WAYS[way])
    train_here(parted, stop_after=2)
    train_here(parted, attempt=2, resume_from=parted.step_state(2))
    assert losses_of(parted) == losses_of(whole)
    assert same(lora_of(parted), lora_of(whole))
    assert trained(lora_of(whole), ZERO_AT_FIRST)


def test_a_dataset_that_changed_before_a_resume_is_told(tmp_path: Path) -> None:
    folder = new_run(tmp_path, "changed", shapes, max_train_steps=3, network_dim=2)
    train_here(folder, stop_after=1)
    train_here(folder, attempt=2, resume_from=folder.step_state(1), stop_after=2)
    assert events_of(folder, "dataset.changed") == []
    next(folder.dataset.glob("*.txt")).write_text("another caption")
    train_here(folder, attempt=3, resume_from=folder.step_state(2))
    (told,) = events_of(folder, "dataset.changed")
    kept = ("step", "checkpoint", "pictures")
    assert {key: told.data[key] for key in kept} == dict(zip(kept, (2, "changed-step00000002-state", 6), strict=True))
    assert told.data["notice"].startswith("The pictures, captions or dataset settings have changed since changed-step")
    assert told.data["hint"] == "To go on as if it had never stopped, resume from there with the old ones."


def test_a_damaged_checkpoint_is_left_out_before_anything_is_set_aside_for_it(tmp_path: Path) -> None:
    folder = new_run(tmp_path, "damaged", some_pictures, network_dim=2, max_train_steps=6, save_every_n_steps=2)
    train_here(folder, stop_after=5)
    first, second = folder.step_state(2), folder.step_state(4)
    weights = (second / "model.safetensors").read_bytes()
    (second / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))

    def order(state: Path) -> Order:
        asked = ["--outputs", str(tmp_path), "--run", "damaged", "--attempt", "2", "--resume-from", state.name]
        return take_order(parse_arguments("fluxcore.training", asked))

    def choice() -> str:
        found = resume_choice(folder, load_run(tmp_path, "damaged")[1])
        return found.name if found else ""

    folder.step_state(5).rename(tmp_path / "away")
    assert choice() == second.name, "its sizes are right"
    before = sorted(path.name for path in folder.path.iterdir())
    with pytest.raises(TrainingError) as error:
        order(second)
    assert error.value.code == Exit.CRASH, "an attempt may follow by itself"
    said = (
        f"the checkpoint {second.name} is damaged (model.safetensors is not as it was written) and left out from now on"
    )
    assert str(error.value) == said
    assert sorted(path.name for path in folder.path.iterdir()) == before, "nothing was set aside"
    assert choice() == first.name
    (second / "model.safetensors").write_bytes(weights)
    assert choice() == second.name and order(second).step == 4, "it was put right"


@pytest.mark.parametrize(
    ("before", "now", "wanted"),
    [
        ({"use_dora": True, "network_alpha": 2.0}, {"network_alpha": 4.0}, "--set network_alpha=2"),
        ({"network_algo": "lokr"}, {"network_alpha": 16.0}, "--set network_alpha=8"),
        ({"network_algo": "loha"}, {"network_alpha": 0.5}, "--set network_alpha=8"),
        ({"network_algo": "lokr", "network_dim": 64}, {"network_dim": 65}, "--set network_dim=64"),
        ({"train_layers": "attn"}, {"network_alpha": 3.0}, "--set network_alpha=8"),
        ({}, {"use_rslora": True}, "--set use_rslora=false"),
        ({}, {"use_dora": True, "network_alpha": 3.0}, "--set network_alpha=8 --set use_dora=false"),
    ],
)
def test_another_network_is_refused_before_anything_is_set_aside(
    tmp_path: Path, before: dict, now: dict, wanted: str
) -> None:
    folder = new_run(tmp_path, "other", some_pictures, **{"network_dim": 2, "save_every_n_steps": 2, **before})
    train_here(folder)
    state = folder.step_state(2)
    config = load_run(tmp_path, "other")[1].config
    save_config(tmp_path, parse_config({**config, **now}), "cli")
    files = sorted(str(path) for path in folder.path.rglob("*") if path.suffix != ".jsonl")
    with pytest.raises(TrainingError, match=f"resume with `{wanted}`, or start afresh") as error:
        train_here(folder, attempt=2, resume_from=state)
    assert error.value.code == Exit.BAD_CONFIG
    assert sorted(str(path) for path in folder.path.rglob("*") if path.suffix != ".jsonl") == files
    save_config(tmp_path, parse_config(config), "cli")
    train_here(folder, attempt=3, resume_from=state)
    assert {path.name for path in folder.superseded.iterdir()} >= {"other-state", "other.safetensors"}


def test_a_files_thumbnail_is_the_newest_sample_of_an_earlier_attempt_too(tmp_path: Path) -> None:
    def thumbnail(folder: RunFolder) -> str:
        with safe_open(folder.final_weights, "pt") as file:
            return file.metadata().get("modelspec.thumbnail", "")

    drawn = {"sample_prompts": "ghost --s 1\ncat --s 1", "sample_every_n_steps": 2, "sample_at_first": True}
    whole = new_run(tmp_path, "whole", some_pictures, network_dim=2, **drawn)
    train_here(whole)
    parted = new_run(tmp_path, "parted", some_pictures, network_dim=2, **drawn)
    train_here(parted, stop_after=3)
    (parted.samples / "parted_000003_00_20260101000000_42.png").write_bytes(b"torn")
    train_here(parted, attempt=2, resume_from=parted.step_state(3))
    assert thumbnail(parted) == thumbnail(whole) != ""
    first = new_run(tmp_path, "first", some_pictures, network_dim=2, **{**drawn, "sample_every_n_steps": 9})
    train_here(first)
    assert thumbnail(first) == "", "the sample at step 0 shows the base model"


def test_the_prior_pictures_weigh_what_is_asked_for(tmp_path: Path) -> None:
    settings = {"dataset_config": SUBSETS, "network_dim": 2, "learning_rate": "1e-12", "max_train_steps": 8}
    losses = {}
    for weight in (0.0, 0.5, 1.0):
        folder = new_run(tmp_path, f"prior-{weight:g}".replace(".", ""), shapes, **settings, prior_loss_weight=weight)
        train_here(folder)
        losses[weight] = list(losses_of(folder).values())
    halfway = [(none + whole) / 2 for none, whole in zip(losses[0.0], losses[1.0], strict=True)]
    assert losses[0.5] == pytest.approx(halfway, rel=1e-5)
    assert any(none < whole * 0.9 for none, whole in zip(losses[0.0], losses[1.0], strict=True))


def test_another_runs_checkpoint_is_told(tmp_path: Path) -> None:
    one, other = (new_run(tmp_path, name, some_pictures, network_dim=2) for name in ("one", "other"))
    train_here(one, stop_after=2)
    shutil.copytree(one.step_state(2), other.step_state(2))
    train_here(other, resume_from=other.step_state(2))
    (told,) = events_of(other, "resume.adapted")
    assert told.data["notices"] == ["it is a checkpoint of the run one"]


def test_another_base_model_is_told(tmp_path: Path) -> None:
    folder = new_run(tmp_path, "damaged", some_pictures, network_dim=2, max_train_steps=3)
    train_here(folder, stop_after=2)
    state = folder.step_state(2)
    about = read_about(state)
    assert (about.run, about.base_model) == ("damaged", "flux-mini")
    write_about(state, "damaged", "flux-midi")
    train_here(folder, attempt=3, resume_from=state)
    (told,) = events_of(folder, "resume.adapted")
    assert told.data["optimizer"] == "kept"
    assert told.data["notices"] == [
        "it was trained on flux-midi, the base model is flux-mini now: the training goes on on that"
    ]


def test_samples_and_a_checkpoint_when_asked_for_disturb_nothing(tmp_path: Path) -> None:
    plain = new_run(tmp_path, "plain", some_pictures)
    train_here(plain)
    drawn = new_run(tmp_path, "drawn", some_pictures, sample_prompts="r1so apple")
    train_here(drawn, wish=(2, "sample"))
    saved = new_run(tmp_path, "saved", some_pictures, enable_checkpointing=False)
    train_here(saved, wish=(2, "save"))
    assert losses_of(plain) == losses_of(drawn) == losses_of(saved)
    assert [event.data["step"] for event in events_of(drawn, "sample.saved")] == [2]
    files = [(event.data["step"], event.data["kind"]) for event in events_of(saved, "checkpoint.saved")]
    assert files == [(2, "state"), (2, "weights"), (4, "weights")]
    found = find_state(saved, saved.step_state(2).name)
    assert found is not None and found.complete
