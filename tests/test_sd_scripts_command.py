"""From a config to sd-scripts' command line: real flags with values they take, FluxGym's own presets, clear refusals."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxcore.config import ConfigError, RunConfig, absolute_paths, parse_config, resolve_config
from fluxcore.sd_scripts import check
from fluxcore.sd_scripts.command import Files, Plan, dataset_toml, options, prompt_lines
from fluxcore.sd_scripts.place import find_scripts
from fluxcore.trainers import TRAINERS
from tests.fake_sd_scripts.flux_train_network import setup_parser
from tests.sd_scripts_tools import FAKE, model_files, settings, use_fake

FILES = Files(Path("/w/dataset.toml"), Path("/w/prompts.txt"), Path("/w/output"), Path("/w/logs"))
FRESH = Plan(first=0, total=480, per_epoch=30)

# What the original FluxGym's three presets have in common, and what each of them adds.
FLUXGYM = (
    "--mixed_precision bf16 --save_precision bf16 --cache_latents_to_disk --cache_text_encoder_outputs "
    "--cache_text_encoder_outputs_to_disk --fp8_base --highvram --gradient_checkpointing --sdpa "
    "--persistent_data_loader_workers --network_module networks.lora_flux --discrete_flow_shift 3.1582 "
    "--model_prediction_type raw --loss_type l2 --max_data_loader_n_workers 2 --seed 42 --network_dim 4 "
    "--learning_rate 8e-4 --max_train_epochs 16 --save_every_n_epochs 4 --timestep_sampling shift "
    "--guidance_scale 1.0 --save_model_as safetensors"
)
ADAFACTOR = (
    "--optimizer_type adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False "
    "--lr_scheduler constant_with_warmup --max_grad_norm 0.0"
)
PRESETS = {
    "20G": "--optimizer_type adamw8bit",
    "16G": ADAFACTOR,
    "12G": f"{ADAFACTOR} --split_mode --network_args train_blocks=single",
}


def pairs(argv: list[str]) -> dict[str, list[str]]:
    """Each flag with its values."""
    found: dict[str, list[str]] = {}
    for word in argv:
        if word.startswith("--"):
            assert word not in found, f"{word} twice"
            found[word] = last = []
        else:
            last.append(word)
    return found


@pytest.mark.parametrize("vram", PRESETS)
def test_fluxgyms_own_presets_come_out_of_the_same_config(vram: str) -> None:
    argv = pairs(options(resolve_config({"base_model": "flux-dev", "vram": vram, "lora_name": "cat"}), FILES, FRESH))
    wanted = pairs(f"{FLUXGYM} {PRESETS[vram]}".split())
    assert {flag: argv.get(flag) for flag in wanted} == wanted
    assert ("--split_mode" in argv) == (vram == "12G")


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "vram": st.sampled_from(["12G", "16G", "20G", "24G"]),
        "concept_sentence": st.text(max_size=20),
        "caption_dropout_rate": numbers(0, 1),
        "max_train_steps": st.integers(0, 2000),
        "train_batch_size": st.integers(1, 256),
        "num_repeats": st.integers(1, 1000),
        "learning_rate": st.sampled_from(["8e-4", "1", "0.00001", "1E-5"]),
        "optimizer_type": st.sampled_from(["adamw", "adamw8bit", "adafactor", "prodigy", "lion", "adamwschedulefree"]),
        "optimizer_args": st.sampled_from(["", "weight_decay=0.1 betas=0.9,0.99"]),
        "lr_scheduler": st.sampled_from(
            ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
        ),
        "lr_scheduler_num_cycles": st.integers(1, 10),
        "lr_scheduler_power": numbers(0.1, 10),
        "gradient_accumulation_steps": st.integers(1, 64),
        "loss_type": st.sampled_from(["l2", "huber", "smooth_l1"]),
        "huber_c": numbers(0.01, 10),
        "weighting_scheme": st.sampled_from(["none", "sigma_sqrt", "cosmap"]),
        "shuffle_caption": st.booleans(),
        "train_blocks": st.sampled_from(["all", "double", "single"]),
        "train_double_block_indices": st.sampled_from(["all", "none", "0,3-7"]),
        "lr_warmup_steps": st.integers(0, 1_000_000),
        "max_grad_norm": numbers(0, 1e6),
        "mixed_precision": st.sampled_from(["no", "bf16", "fp16"]),
        "save_precision": st.sampled_from(["float", "bf16", "fp16"]),
        "gradient_checkpointing": st.booleans(),
        "seed": st.integers(0, 2**32 - 1),
        "workers": st.integers(0, 64),
        "network_dim": st.integers(1, 1024),
        "network_alpha": numbers(1e-6, 4096),
        "network_dropout": numbers(0, 0.99),
        "network_weights": st.sampled_from(["", "/loras/cat.safetensors"]),
        "guidance_scale": numbers(0, 100),
        "timestep_sampling": st.sampled_from(["shift", "flux_shift", "sigmoid", "uniform"]),
        "sigmoid_scale": numbers(1e-6, 10),
        "sample_every_n_steps": st.integers(0, 100),
        "sample_at_first": st.booleans(),
        "enable_checkpointing": st.booleans(),
        "save_every_n_epochs": st.integers(0, 100),
        "save_every_n_steps": st.integers(0, 100),
        "save_last_n_epochs_state": st.integers(0, 100),
        "save_last_n_steps_state": st.integers(0, 100),
    },
)


@given(values=CONFIGS, first=st.integers(0, 479), prompts=st.booleans())
def test_every_flag_is_a_real_one_and_takes_such_a_value(values: dict[str, Any], first: int, prompts: bool) -> None:
    config = parse_config({"lora_name": "cat", **dict.fromkeys(("ae", "clip_l", "t5xxl"), "/m/x"), **values})
    files = FILES if prompts else Files(FILES.dataset_config, None, FILES.output, FILES.logs)
    resume = Path("/runs/cat/cat-000004-state") if first else None
    argv = options(config, files, Plan(first, 480, 30), resume)
    pairs(argv)  # none twice
    given = strict_parser().parse_args(argv)
    # What sd-scripts themselves refuse, or break off with, must not come out of any config.
    assert not (given.fp8_base and given.mixed_precision == "no")
    assert not (given.persistent_data_loader_workers and not given.max_data_loader_n_workers)
    assert not ((given.caption_dropout_rate or config.shuffle_caption) and given.cache_text_encoder_outputs)
    assert not (given.lr_warmup_steps and given.lr_scheduler in (None, "constant"))
    assert given.save_every_n_epochs != 0 and given.save_every_n_steps != 0
    assert (given.resume is None) == (first == 0) == (given.initial_step is None)
    assert not (given.resume and (given.network_weights or given.sample_at_first))


def strict_parser() -> argparse.ArgumentParser:
    parser = setup_parser()
    parser.error = lambda message: pytest.fail(message)  # type: ignore[method-assign,assignment]
    return parser


def test_the_strict_parser_is_strict() -> None:
    for wrong in (
        ["--made_up"],
        ["--network_dim", "four"],
        ["--sdpa", "yes"],
        ["--loss_type", "l3"],
        ["--network_di", "4"],
    ):
        with pytest.raises(pytest.fail.Exception):
            strict_parser().parse_args(wrong)


def test_a_resume_trains_what_is_left_on_the_schedule_of_the_whole() -> None:
    config = parse_config({"lora_name": "cat", "lr_scheduler": "cosine", "lr_warmup_steps": 10, "max_train_steps": 480})
    fresh = pairs(options(config, FILES, FRESH))
    assert (fresh["--max_train_steps"], fresh["--lr_scheduler"], fresh["--lr_warmup_steps"]) == (
        ["480"],
        ["cosine"],
        ["10"],
    )
    later = pairs(options(config, FILES, Plan(120, 480, 30), Path("/runs/cat/cat-000004-state")))
    assert (later["--initial_step"], later["--max_train_steps"]) == (["0"], ["360"])
    assert later["--resume"] == ["/runs/cat/cat-000004-state"]
    assert later["--lr_scheduler_type"] == ["transformers.optimization.get_cosine_schedule_with_warmup"]
    assert later["--lr_scheduler_args"] == ["num_warmup_steps=10", "num_training_steps=480"]
    assert not {"--max_train_epochs", "--lr_scheduler", "--lr_warmup_steps"} & set(later)


@given(trigger=st.text(max_size=30), folder=st.text(min_size=1, max_size=30))
def test_the_dataset_file_is_toml_whatever_is_in_it(trigger: str, folder: str) -> None:
    config = parse_config({"concept_sentence": trigger, "train_batch_size": 2, "num_repeats": 7})
    read = tomllib.loads(dataset_toml(config, Path("/x") / folder))
    (dataset,) = read["datasets"]
    (subset,) = dataset["subsets"]
    assert (dataset["resolution"], dataset["batch_size"], subset["num_repeats"]) == (512, 2, 7)
    assert subset["image_dir"] == str(Path("/x") / folder)
    assert subset.get("class_tokens", "") == config.concept_sentence


def test_prompts_carry_every_flag_and_keep_their_own() -> None:
    text = "a cat\n# not this\na dog --d 7 --w 256 --g 2 --n blurry"
    config = parse_config({"sample_prompts": text, "sample_every_n_steps": 5, "seed": 100, "resolution": 768})
    assert prompt_lines(config) == [
        "a cat --w 768 --h 768 --d 100 --s 20 --l 1.0 --g 3.5",
        "a dog --w 256 --h 768 --d 7 --s 20 --l 1.0 --g 2.0 --n blurry",
    ]
    assert prompt_lines(config.model_copy(update={"sample_every_n_steps": 0})) == []


def test_what_is_missing_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch)
    good = settings(tmp_path)
    check(resolve_config(good))

    def refusal(**changes: str) -> str:
        with pytest.raises(ConfigError) as error:
            check(resolve_config({**good, **changes}))
        return str(error.value)

    assert "set ae, t5xxl to their paths" in refusal(ae="", t5xxl="")
    assert "t5xxl: there is no file /nowhere/t5" in refusal(t5xxl="/nowhere/t5")
    assert "absolute path" in refusal(ae="ae.safetensors")
    assert "can't read flux-mini" in refusal(base_model="flux-mini")
    monkeypatch.setenv("FLUXGYM_SD_SCRIPTS", str(tmp_path))
    assert "no flux_train_network.py" in refusal()
    monkeypatch.delenv("FLUXGYM_SD_SCRIPTS")
    assert "set FLUXGYM_SD_SCRIPTS to their folder" in refusal()


def test_its_python_is_the_named_one_else_that_of_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake(monkeypatch)
    monkeypatch.setenv("FLUXGYM_SD_SCRIPTS_PYTHON", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no program"):
        find_scripts()
    monkeypatch.delenv("FLUXGYM_SD_SCRIPTS_PYTHON")
    (tmp_path / "flux_train_network.py").write_text("")
    monkeypatch.setenv("FLUXGYM_SD_SCRIPTS", str(tmp_path))
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/sh")
    assert find_scripts().python == str(python), "the link itself: what it leads to knows nothing of the environment"
    monkeypatch.setenv("FLUXGYM_SD_SCRIPTS", str(FAKE))
    assert find_scripts().python != str(python)


def test_the_trainer_is_a_setting_of_the_registrys_names(tmp_path: Path) -> None:
    for name in TRAINERS:
        assert parse_config({"trainer": name}).trainer == name
    with pytest.raises(ConfigError, match="trainer must be one of"):
        parse_config({"trainer": "onetrainer"})
    assert RunConfig().trainer == "fluxgym"


def test_a_base_model_of_ones_own_may_bring_trainer_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch)
    files = model_files(tmp_path / "models")
    given = "".join(f'{name} = "{path}"\n' for name, path in {"trainer": "sd-scripts", **files}.items())
    registry = tmp_path / "models.toml"
    registry.write_text(f'[kohya-dev]\ntitle = "FLUX.1-dev, with sd-scripts"\n[kohya-dev.defaults]\n{given}')
    monkeypatch.setenv("FLUXGYM_MODELS", str(registry))
    config = resolve_config({"base_model": "kohya-dev"})
    check(config)
    assert (config.trainer, config.ae) == ("sd-scripts", files["ae"])


def test_model_files_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert absolute_paths({"ae": "ae.safetensors", "t5xxl": ""}) == {
        "ae": str(tmp_path / "ae.safetensors"),
        "t5xxl": "",
    }
