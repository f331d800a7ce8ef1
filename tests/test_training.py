"""The trainer on flux-mini, as a process: what it writes, how it resumes, how it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from fluxcore.config import parse_config, resolve_config
from fluxcore.dataset import copy_dataset
from fluxcore.log import read_events
from fluxcore.runs import RunFolder, create_run, list_checkpoints, load_run, resume_choice, save_config
from fluxcore.runs.exits import FAILED, REASONS
from runner.endings import explain, read_tail
from runner.executor import Exit
from tests import forked
from tests.test_events_page import undocumented

ROOT = Path(__file__).resolve().parents[1]
RISO = ROOT / "examples" / "riso"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight captioned pictures of the example."""
    folder = tmp_path_factory.mktemp("pictures")
    for image in sorted(RISO.glob("*.png"))[:8]:
        shutil.copy(image, folder)
        shutil.copy(image.with_suffix(".txt"), folder)
    return folder


def new_run(outputs: Path, name: str, pictures: Path, **settings: object) -> RunFolder:
    few = {"max_train_steps": 4, "train_batch_size": 2, "save_every_n_epochs": 0, "concept_sentence": "r1so"}
    config = resolve_config({"lora_name": name, **few, **settings})
    return create_run(outputs, config, "cli", lambda dataset: copy_dataset(pictures, dataset))


def trainer(folder: RunFolder, attempt: int = 1, resume_from: str | None = None) -> BaseProcess:
    return forked.begin(folder.path, arguments(attempt, resume_from))


def arguments(attempt: int, resume_from: str | None = None) -> list[str]:
    return ["--attempt", str(attempt), *(["--resume-from", resume_from] if resume_from else [])]


def train(folder: RunFolder, attempt: int = 1, resume_from: str | None = None) -> int | None:
    return forked.code_of(trainer(folder, attempt, resume_from))


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    yield
    forked.end_all()


def steps_of(folder: RunFolder) -> list[int]:
    return [event.data["step"] for event in read_events(folder.path) if event.type == "train.step"]


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def last_line(folder: RunFolder) -> str:
    return folder.train_log.read_text().strip().splitlines()[-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> RunFolder:
    """A short run with epochs, samples, step saves and retention."""
    folder = new_run(
        tmp_path_factory.mktemp("outputs"),
        "whole",
        pictures,
        max_train_steps=0,
        max_train_epochs=3,
        train_batch_size=4,
        save_every_n_epochs=1,
        sample_every_n_steps=3,
        sample_prompts="r1so, red apple --d 5\nghost --s 4",
        network_dim=4,
    )
    command = [sys.executable, "-m", "fluxcore.training", "--outputs", str(folder.path.parent), "--run", folder.name]
    with open(folder.train_log, "ab") as log:  # as the runner starts it; the other tests' are forked
        code = subprocess.call([*command, *arguments(1)], cwd=ROOT, stdout=log, stderr=log, timeout=300)
    assert code == 0, folder.train_log.read_text()
    return folder


def test_every_step_is_one_event_with_all_its_fields(finished: RunFolder) -> None:
    steps = [event.data for event in read_events(finished.path) if event.type == "train.step"]
    assert [data["step"] for data in steps] == [1, 2, 3, 4, 5, 6]
    assert [data["epoch"] for data in steps] == [1, 1, 2, 2, 3, 3]
    fields = {"step", "total_steps", "epoch", "loss", "lr", "grad_norm"}
    fields |= {"step_seconds", "images_per_second", "memory_gib"}
    assert all(set(data) == fields and None not in data.values() for data in steps)
    assert all(event.attempt == 1 for event in read_events(finished.path) if event.source == "trainer")
    assert undocumented(finished.path, "trainer", "cli") == []


def test_phases_follow_each_other_and_train_is_announced_again(finished: RunFolder) -> None:
    phases = [event.data["phase"] for event in read_events(finished.path) if event.type == "phase.started"]
    assert phases[:6] == ["load", "cache", "load", "cache", "sample", "train"]
    assert phases[-2:] == ["save", "sample"]
    for before, after in zip(phases, phases[1:], strict=False):
        assert not (before in ("save", "sample") and after == "load")


def test_files_have_sd_scripts_names_and_the_last_epoch_only_the_plain_ones(finished: RunFolder) -> None:
    names = {found.name for found in list_checkpoints(finished)}
    assert names == {
        "whole-000001.safetensors", "whole-000001-state", "whole-000002.safetensors", "whole-000002-state",
        "whole.safetensors", "whole-state",
    }  # fmt: skip
    assert all(found.complete for found in list_checkpoints(finished))
    saved = {e.data["path"]: e.data for e in read_events(finished.path) if e.type == "checkpoint.saved"}
    assert set(saved) == names
    assert saved["whole-000001-state"]["step"] == 2


def test_checkpoints_are_as_large_as_the_disk_guard_expects(finished: RunFolder) -> None:
    from fluxcore.config import parse_saved
    from fluxcore.models.lora_size import lora_size
    from fluxcore.models.registry import find_model
    from fluxcore.runs.disk import estimate_disk

    config = parse_saved(load_run(finished.path.parent, "whole")[1].config)
    needs = estimate_disk(config, 8, lora_size(find_model(config.base_model)))
    written = list_checkpoints(finished)
    for found in written:
        assert found.bytes == pytest.approx(needs.state if found.kind == "state" else needs.weights, rel=0.1), (
            found.name
        )
    assert needs.total == pytest.approx(sum(found.bytes for found in written), rel=0.1)


def test_samples_are_drawn_before_during_and_after_and_named_as_sd_scripts_names_them(finished: RunFolder) -> None:
    samples = [event.data for event in read_events(finished.path) if event.type == "sample.saved"]
    assert [(sample["step"], sample["index"]) for sample in samples] == [
        (0, 0), (0, 1), (3, 0), (3, 1), (6, 0), (6, 1),
    ]  # fmt: skip
    for sample in samples:
        assert Image.open(finished.path / sample["path"]).size == (64, 64)
    assert samples[0]["path"].startswith("sample/whole_000000_00_") and samples[0]["path"].endswith("_5.png")


def test_a_state_holds_the_lora_and_its_optimizer_only(finished: RunFolder) -> None:
    state = finished.epoch_state(1)
    tensors = load_file(state / "model.safetensors")
    assert tensors and all(name.startswith("lora_unet_") for name in tensors)
    assert all(value.dtype == torch.float32 for value in tensors.values())
    optimizer = torch.load(state / "optimizer.bin", weights_only=True)
    fused = {"attn_qkv": 3, "linear1": 4}  # sd-scripts' modules that are several layers here, of two matrices each
    modules = [name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha")]
    assert len(optimizer["state"]) == 2 * sum(
        fused.get(m.split("_", 5)[-1].removeprefix("img_").removeprefix("txt_"), 1) for m in modules
    )
    assert json.loads((state / "train_state.json").read_text()) == {
        "current_epoch": 1, "current_step": 2, "attempt": 1,
    }  # fmt: skip
    assert sum(file.stat().st_size for file in state.iterdir()) < 5_000_000


def test_the_lora_file_says_what_it_is(finished: RunFolder) -> None:
    from safetensors import safe_open

    with safe_open(finished.final_weights, "pt") as file:
        metadata, keys = file.metadata(), list(file.keys())
    assert metadata["ss_network_module"] == "networks.lora_flux"
    assert metadata["ss_network_dim"] == "4"
    assert metadata["ss_steps"] == "6"
    assert "r1so" in metadata["modelspec.trigger_phrase"]
    assert "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight" in keys


def test_diffusers_draws_the_trainers_own_sample_with_the_converted_lora(finished: RunFolder, tmp_path: Path) -> None:
    import numpy as np

    from fluxcore.models.loading import load_pipeline
    from fluxcore.models.registry import find_model
    from fluxcore.training.lora_file import convert_lora

    converted, of_peft = (tmp_path / f"whole-{form}.safetensors" for form in ("diffusers", "peft"))
    convert_lora(finished.final_weights, converted, "diffusers")
    convert_lora(converted, of_peft, "peft")
    path = find_model("flux-mini").path
    assert path is not None
    pipeline = load_pipeline(path)

    def draw() -> np.ndarray:
        image = pipeline(
            "r1so, red apple", width=64, height=64, num_inference_steps=20, guidance_scale=3.5, max_sequence_length=64,
            generator=torch.Generator().manual_seed(5),
        ).images[0]  # fmt: skip
        return np.asarray(image, dtype=int)

    sample = next(
        event.data for event in read_events(finished.path)
        if event.type == "sample.saved" and event.data["step"] == 6 and event.data["index"] == 0
    )  # fmt: skip
    ours = np.asarray(Image.open(finished.path / sample["path"]).convert("RGB"), dtype=int)
    pipeline.load_lora_weights(str(tmp_path), weight_name=converted.name)
    drawn = draw()
    assert np.abs(ours - drawn).max() <= 2
    pipeline.unload_lora_weights()
    assert np.abs(ours - draw()).max() > 2  # the LoRA does something
    pipeline.transformer.load_lora_adapter(str(of_peft), prefix=None)
    assert np.abs(drawn - draw()).max() <= 1


KILLS = {"uninterrupted": [], "one-kill": [12], "two-kills": [7, 18]}


def test_killed_and_resumed_training_ends_bit_identical(tmp_path: Path, pictures: Path) -> None:
    """25 steps at once; 25 with a kill -9 at step 12; 25 with kills at 7 and 18."""
    results = {}
    for name, kills in KILLS.items():
        folder = new_run(
            tmp_path, name, pictures, max_train_steps=25, save_every_n_steps=5, network_dropout=0.1,
            caption_dropout_rate=0.2, sample_every_n_steps=10 if kills else 0, sample_prompts="ghost --s 2",
        )  # fmt: skip
        resume_from = None
        for attempt, kill_at in enumerate(kills, 1):
            process = trainer(folder, attempt, resume_from)
            wait_until(lambda at=kill_at, run=folder: max(steps_of(run), default=0) >= at)
            process.kill()
            process.join()
            chosen = resume_choice(folder, load_run(tmp_path, name)[1])
            assert chosen is not None and chosen.step is not None and 0 < chosen.step < 25
            resume_from = chosen.name
        assert train(folder, len(kills) + 1, resume_from) == 0, folder.train_log.read_text()
        assert set(range(1, 26)) <= set(steps_of(folder))
        results[name] = load_file(folder.final_weights)
    whole = results["uninterrupted"]
    assert any(value.abs().max() > 0 for key, value in whole.items() if "lora_up" in key)
    for name in ("one-kill", "two-kills"):
        assert set(results[name]) == set(whole)
        assert all(torch.equal(results[name][key], whole[key]) for key in whole), name


def test_a_held_and_swapped_base_trains_samples_saves_and_resumes(tmp_path: Path, pictures: Path) -> None:
    settings = {
        "mixed_precision": "bf16", "quantize_base": "int8", "blocks_to_swap": 2, "encode_on_cpu": True,
        "gradient_checkpointing": True, "sample_every_n_steps": 3, "sample_prompts": "ghost --s 2", "network_dim": 2,
    }  # fmt: skip
    whole = new_run(tmp_path, "held", pictures, max_train_steps=3, save_every_n_steps=2, **settings)
    assert train(whole) == 0, whole.train_log.read_text()
    resumed = new_run(tmp_path, "again", pictures, max_train_steps=3, **settings)
    shutil.copytree(whole.step_state(2), resumed.step_state(2))
    assert train(resumed, 1, resumed.step_state(2).name) == 0, resumed.train_log.read_text()
    expected, found = load_file(whole.final_weights), load_file(resumed.final_weights)
    assert any(value.abs().max() > 0 for key, value in expected.items() if "lora_up" in key)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    optimizer = torch.load(whole.final_state / "optimizer.bin", weights_only=True)
    assert {entry["exp_avg"].dtype for entry in optimizer["state"].values()} == {torch.float32}


def test_term_saves_a_state_to_resume_from(tmp_path: Path, pictures: Path) -> None:
    folder = new_run(tmp_path, "stopped", pictures, max_train_steps=2000)
    process = trainer(folder)
    wait_until(lambda: len(steps_of(folder)) >= 3)
    process.terminate()
    assert forked.code_of(process, 60) == 143
    last = max(steps_of(folder))
    chosen = resume_choice(folder, load_run(tmp_path, "stopped")[1])
    assert chosen is not None and chosen.step == last
    assert not list(folder.path.glob("*.tmp"))


def test_a_term_while_samples_are_drawn_is_heard_at_once(tmp_path: Path, pictures: Path) -> None:
    folder = new_run(
        tmp_path, "drawing", pictures, max_train_steps=50, sample_every_n_steps=3, sample_at_first=False,
        sample_prompts="ghost --s 1000 --w 128 --h 128",
    )  # fmt: skip
    process = trainer(folder)
    phases = lambda: [e.data["phase"] for e in read_events(folder.path) if e.type == "phase.started"]  # noqa: E731
    wait_until(lambda: phases()[-1:] == ["sample"])
    asked = time.monotonic()
    process.terminate()
    assert forked.code_of(process, 60) == 143
    assert time.monotonic() - asked < 20
    chosen = resume_choice(folder, load_run(tmp_path, "drawing")[1])
    assert chosen is not None and chosen.step == 3
    assert not [event for event in read_events(folder.path) if event.type == "sample.saved"]


@pytest.mark.parametrize(
    ("said", "free"),
    [
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), 0),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), 1_200_000),
    ],
)
def test_a_full_disk_while_a_state_is_saved_is_called_that_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Exception, free: int
) -> None:
    from types import SimpleNamespace

    from fluxcore.training.failures import Exit, explain
    from fluxcore.training.states import save_state

    class Accelerator:
        def save_state(self, folder: str) -> None:
            (Path(folder) / "optimizer.bin").write_bytes(b"x")
            raise said

    folder = RunFolder.of(tmp_path, "full")
    folder.path.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(OSError, match="disk is full") as caught:
        save_state(Accelerator(), folder, folder.final_state, 1, 5, 1)  # type: ignore[arg-type]
    expected = explain(caught.value)
    assert expected is not None and expected.code == Exit.DISK_FULL
    assert list(folder.path.iterdir()) == []


def test_a_state_that_can_not_be_saved_costs_no_older_one(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from fluxcore.config import parse_config
    from fluxcore.training.train import Training
    from tests.stub_trainer import save_state as older_state

    class Accelerator:
        full = True

        def save_state(self, folder: str) -> None:
            assert (tmp_path / "kept" / "kept-000001-state").exists(), "the old one goes only once the new one is whole"
            if self.full:
                raise OSError(28, "No space left on device")
            older_state(Path(folder).parent, Path(folder).name + ".2", 2)
            for file in (Path(folder).parent / (Path(folder).name + ".2")).iterdir():
                shutil.copy(file, folder)

    folder = RunFolder.of(tmp_path, "kept")
    folder.path.mkdir()
    older_state(folder.path, "kept-000001-state", 1)
    config = parse_config({"lora_name": "kept", "save_last_n_epochs_state": 1})
    log = SimpleNamespace(append=lambda *_: None, attempt=1)
    training = Training(folder, config, log)  # type: ignore[arg-type]
    accelerator = Accelerator()
    with pytest.raises(OSError, match="No space"):
        training._save_state(accelerator, folder.epoch_state(2), 2, 2)  # type: ignore[arg-type]
    assert folder.epoch_state(1).is_dir() and not folder.epoch_state(2).exists()
    accelerator.full = False
    training._save_state(accelerator, folder.epoch_state(2), 2, 2)  # type: ignore[arg-type]
    assert folder.epoch_state(2).is_dir() and not folder.epoch_state(1).exists()


def test_what_lies_beyond_the_resume_point_is_set_aside_not_overwritten(tmp_path: Path, pictures: Path) -> None:
    folder = new_run(tmp_path, "rewound", pictures, max_train_steps=6, save_every_n_steps=2)
    assert train(folder) == 0
    before = folder.final_weights.read_bytes()
    assert train(folder, 2, "rewound-step00000002-state") == 0, folder.train_log.read_text()
    aside = {path.name for path in folder.superseded.iterdir()}
    assert {"rewound-step00000004-state", "rewound.safetensors", "rewound-state"} <= aside
    assert (folder.superseded / "rewound.safetensors").read_bytes() == before
    assert load_file(folder.final_weights).keys() == load_file(folder.superseded / "rewound.safetensors").keys()


def test_a_resume_goes_on_with_the_settings_of_now(tmp_path: Path, pictures: Path) -> None:
    """The state holds the learning rate and the optimizer of before; what a person changed counts."""
    settings = {"learning_rate": "1e-3", "optimizer_type": "adamw", "lr_scheduler": "linear"}
    folder = new_run(tmp_path, "lowered", pictures, max_train_steps=2, save_every_n_steps=1, **settings)
    assert train(folder) == 0
    changed = {"learning_rate": "2e-4", "optimizer_type": "adafactor", "max_train_steps": 4}
    save_config(tmp_path, parse_config({**load_run(tmp_path, "lowered")[1].config, **changed}), "cli")
    assert train(folder, 2, "lowered-step00000001-state") == 0, folder.train_log.read_text()
    rates = [event.data["lr"] for event in read_events(folder.path) if event.type == "train.step"]
    assert rates == pytest.approx([1e-3, 5e-4, 1.5e-4, 1e-4, 5e-5])


def test_a_lora_can_be_continued_at_the_strength_it_had(tmp_path: Path, pictures: Path) -> None:
    first = new_run(tmp_path, "first", pictures, network_alpha=4.0)
    assert train(first) == 0
    second = new_run(
        tmp_path, "second", pictures, network_alpha=8.0, network_weights=str(first.final_weights),
        max_train_steps=1, learning_rate="1e-9",
    )  # fmt: skip
    assert train(second) == 0, second.train_log.read_text()
    old, new = load_file(first.final_weights), load_file(second.final_weights)
    key = "lora_unet_single_blocks_0_linear2"
    for tensors in (old, new):
        tensors["delta"] = (
            tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"] * tensors[f"{key}.alpha"] / 8
        )
    assert torch.allclose(old["delta"], new["delta"], atol=1e-6)


def broken_picture(folder: Path) -> None:
    image = next(folder.glob("*.png"))
    image.write_bytes(image.read_bytes()[:200])


@pytest.mark.parametrize(
    ("settings", "spoil", "code", "words"),
    [
        ({}, lambda dataset: [file.unlink() for file in dataset.iterdir()], 3, "no pictures"),
        ({}, broken_picture, 3, "can't be read"),
        ({"resume_from_checkpoint": "x-state"}, None, 2, "can't be resumed from"),
        ({"sample_prompts": "cat --w big"}, None, 2, "sample prompt"),
        ({"network_weights": "/nowhere.safetensors"}, None, 2, "/nowhere.safetensors can't be used: there is no such"),
    ],
)
def test_a_wrong_run_ends_in_one_sentence_and_its_exit_code(
    tmp_path: Path,
    pictures: Path,
    settings: dict[str, object],
    spoil: Callable[[Path], object] | None,
    code: int,
    words: str,
) -> None:
    folder = new_run(tmp_path, "wrong", pictures, **settings)
    if spoil:
        spoil(folder.dataset)
    assert train(folder) == code
    assert last_line(folder).startswith(FAILED) and words in last_line(folder)
    assert "Traceback" not in folder.train_log.read_text()
    ending = explain(Exit(code), False, read_tail(folder.train_log), False)
    assert ending.reason == REASONS[code] and words in ending.hint  # type: ignore[index]


def test_a_damaged_file_of_the_base_model_is_named(tmp_path: Path, pictures: Path) -> None:
    from fluxcore.models.registry import find_model

    model = tmp_path / "model"
    shutil.copytree(find_model("flux-mini").path, model)  # type: ignore[arg-type]
    (blob,) = (model / "transformer").glob("*.safetensors")
    whole = tmp_path / "blob"
    whole.write_bytes(blob.read_bytes()[:1000])
    blob.unlink()
    blob.symlink_to(whole)  # as in the Hub's cache, where deleting the link alone would bring it back
    folder = new_run(tmp_path, "damaged", pictures, base_model=str(model))
    assert train(folder) == 4
    assert f"{whole}: delete it" in explain(Exit(4), False, read_tail(folder.train_log), False).hint


def test_a_state_of_another_rank_is_refused(tmp_path: Path, pictures: Path) -> None:
    first = new_run(tmp_path, "ranked", pictures, network_dim=2, max_train_steps=2)
    assert train(first) == 0
    other = new_run(tmp_path, "other", pictures, network_dim=4)
    shutil.copytree(first.final_state, other.final_state)
    assert train(other, 1, "other-state") == 2
    assert "its network_dim is 2: resume with `--set network_dim=2`" in last_line(other)


def test_a_loss_that_is_no_number_ends_the_training_with_the_number_in_the_log(tmp_path: Path, pictures: Path) -> None:
    from fluxcore.training.lora_file import save_lora

    first = new_run(tmp_path, "sound", pictures, max_train_steps=1)
    assert train(first) == 0
    tensors = {
        key: value * 1e38 if "lora_up" in key else value  # large enough for the loss to overflow
        for key, value in load_file(first.final_weights).items()
    }
    poisoned = tmp_path / "poisoned.safetensors"
    save_lora(poisoned, tensors, {})
    folder = new_run(tmp_path, "nan", pictures, network_weights=str(poisoned))
    assert train(folder) == 5
    step = next(event for event in read_events(folder.path) if event.type == "train.step")
    assert step.data["loss"] in ("nan", "inf")
    assert not folder.final_weights.exists()
