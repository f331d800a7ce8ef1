"""Other trainers' configs, in the layouts that they write: every key is mapped, of no matter, or named as left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_tools import call

from fluxcore.config import RunConfig, resolve_config
from fluxcore.config.foreign import read_config
from fluxcore.config.foreign_values import ForeignError

# The keys of kohya_ss' presets/lora/flux1D - adamw8bit fp8.json that say something, with values of our own.
KOHYA: dict[str, Any] = {
    "LoRA_type": "Flux1", "LyCORIS_preset": "full", "additional_parameters": "", "ae": "/models/ae.sft",
    "bucket_no_upscale": False, "cache_latents": True, "cache_latents_to_disk": True, "caption_dropout_rate": 0.1,
    "caption_extension": ".txt", "clip_l": "D:/models/clip_l.safetensors", "discrete_flow_shift": 3.1, "epoch": 9,
    "flux1_cache_text_encoder_outputs": True, "flux1_checkbox": True, "fp8_base": True, "full_bf16": False,
    "gradient_checkpointing": True, "guidance_scale": 1.0, "highvram": True, "huggingface_token": "",
    "learning_rate": 0.0003, "log_with": "", "loss_type": "l2", "lr_scheduler": "cosine", "lr_warmup": 0,
    "max_data_loader_n_workers": 1, "max_grad_norm": 1, "max_resolution": "768,512", "max_train_epochs": 7,
    "max_train_steps": 4000, "min_snr_gamma": 10, "mixed_precision": "bf16", "model_prediction_type": "raw",
    "network_alpha": 8, "network_dim": 16, "network_dropout": 0, "network_weights": "", "num_processes": 1,
    "optimizer": "AdamW8bit", "output_dir": "./out", "output_name": "Old cat v2",
    "pretrained_model_name_or_path": "E:\\models\\flux1-dev.safetensors", "resume": "", "sample_every_n_steps": 200,
    "sample_prompts": "ohwx cat on a roof --w 768 --h 768 --s 20", "save_every_n_epochs": 1, "save_model_as":
    "safetensors", "save_precision": "bf16", "save_state": True, "sdxl": False, "seed": 7, "split_mode": False,
    "t5xxl": "", "timestep_sampling": "sigma", "train_batch_size": 2, "train_blocks": "all", "train_data_dir": "./img",
    "unet_lr": 0.0002, "vae": "", "xformers": "sdpa",
}  # fmt: skip

SD_SCRIPTS = """
[model_arguments]
pretrained_model_name_or_path = "/models/flux1-dev.safetensors"
ae = "/models/ae.safetensors"
[network_arguments]
network_module = "networks.lora_flux"
network_dim = 128
network_alpha = 64
network_args = ["train_blocks=single"]
[optimizer_arguments]
optimizer_type = "prodigyopt"
learning_rate = 1.0
[training_arguments]
output_name = "ohwx"
max_train_steps = 1500
mixed_precision = "bf16"
timestep_sampling = "shift"
discrete_flow_shift = 3.1582
blocks_to_swap = 18
save_every_n_steps = 100
sample_prompts = "prompts.txt"
"""

AI_TOOLKIT = """
---
job: extension
config:
  name: "my_dog_v1"
  process:
    - type: 'sd_trainer'
      training_folder: "output"
      device: cuda:0
      trigger_word: "d0g"
      network:
        type: "lora"
        linear: 16
        linear_alpha: 8
      save:
        dtype: float16 # precision to save
        save_every: 250
        max_step_saves_to_keep: 4
        push_to_hub: false
      datasets:
        - folder_path: "/path/to/images/folder"
          caption_ext: "txt"
          caption_dropout_rate: 0.05
          shuffle_tokens: false
          cache_latents_to_disk: true
          resolution: [ 512, 768, 1024 ]
      train:
        batch_size: 1
        steps: 1800
        gradient_accumulation_steps: 1
        train_unet: true
        train_text_encoder: false
        gradient_checkpointing: true
        noise_scheduler: "flowmatch"
        optimizer: "adamw8bit"
        lr: 1e-4
        ema_config:
          use_ema: true
          ema_decay: 0.99
        dtype: bf16
      model:
        name_or_path: "black-forest-labs/FLUX.1-dev"
        is_flux: true
        quantize: true
      sample:
        sampler: "flowmatch"
        sample_every: 300
        width: 1024
        height: 768
        prompts:
          - "[trigger] asleep in the sun"
          - "a red bicycle"
        neg: ""
        seed: 11
        walk_seed: true
        guidance_scale: 4
        sample_steps: 20
meta:
  name: "[name]"
  version: '1.0'
"""


def test_a_file_of_kohyas_gui() -> None:
    found, left = read_config(json.dumps(KOHYA), ".json")
    config = resolve_config(found)
    assert (config.lora_name, config.base_model, config.network_dim, config.network_alpha) == (
        "Old-cat-v2",
        "flux-dev",
        16,
        8,
    )
    assert (config.max_train_epochs, config.max_train_steps) == (7, 0), "there epochs win over steps"
    assert (config.learning_rate, config.resolution, config.train_batch_size, config.seed) == ("0.0002", 624, 2, 7)
    assert (config.fp8_base, config.enable_checkpointing, config.workers, config.lr_scheduler) == (
        True,
        True,
        1,
        "cosine",
    )
    assert config.optimizer_type.startswith("adamw") and config.sample_prompts.startswith("ohwx cat on a roof --w 768")
    assert config.ae == "/models/ae.sft" and config.discrete_flow_shift == 3.1 and config.caption_dropout_rate == 0.1
    # What asks for something that is not here, or for a file of another machine, is named; nothing else.
    assert set(left) == {
        "LyCORIS_preset", "clip_l", "pretrained_model_name_or_path", "min_snr_gamma", "timestep_sampling",
    }  # fmt: skip


def test_of_steps_and_epochs_those_that_count_there_count_here() -> None:
    found, _ = read_config(json.dumps({**KOHYA, "max_train_epochs": 0}), ".json")
    assert resolve_config(found).max_train_steps == 4000
    found, _ = read_config(json.dumps({**KOHYA, "max_train_epochs": 0, "max_train_steps": 0}), ".json")
    assert resolve_config(found).max_train_steps == 0 and resolve_config(found).max_train_epochs == 9


def test_a_config_file_of_sd_scripts() -> None:
    found, left = read_config(SD_SCRIPTS, ".toml")
    config = resolve_config(found)
    assert (config.lora_name, config.network_dim, config.max_train_steps, config.blocks_to_swap) == (
        "ohwx",
        128,
        1500,
        18,
    )
    assert config.pretrained_model_name_or_path == "/models/flux1-dev.safetensors" and config.learning_rate == "1.0"
    assert {"sample_prompts"} <= set(left) <= {"sample_prompts", "optimizer_type"} and config.train_blocks == "single"


@pytest.mark.parametrize(
    ("line", "wanted", "left"),
    [
        ('optimizer_args = ["weight_decay=0.01", "betas=0.9,0.99"]', {"optimizer_args": "weight_decay=0.01 betas=0.9,0.99"}, []),
        ("lr_warmup_steps = 0.1\nmax_train_steps = 400", {"lr_warmup_steps": 40, "max_train_steps": 400}, []),
        ("lr_warmup_steps = 0.1\nmax_train_epochs = 4", {"max_train_epochs": 4}, ["lr_warmup_steps"]),
        ("lr_warmup_steps = 40", {"lr_warmup_steps": 40}, []),
        ("learning_rate = 1e-3\nunet_lr = 5e-5", {"learning_rate": "5e-05"}, []),
        (
            'network_args = ["train_blocks=single", "train_single_block_indices=7-12", "split_qkv=True", "loraplus_lr_ratio=4"]',
            {"train_blocks": "single", "train_single_block_indices": "7-12"},
            ["network_args loraplus_lr_ratio"],
        ),
    ],
)  # fmt: skip
def test_values_of_sd_scripts_in_its_own_form(line: str, wanted: dict[str, Any], left: list[str]) -> None:
    found, without = read_config(line, ".toml")
    resolve_config({"lora_name": "cat", **found})
    assert {name: found.get(name) for name in wanted} == wanted and without == left
    assert set(found) - set(wanted) <= {"base_model", "trainer", "max_train_steps"}


def test_a_job_of_ai_toolkit() -> None:
    found, left = read_config(AI_TOOLKIT, ".yaml")
    config = resolve_config(found)
    assert (config.lora_name, config.concept_sentence, config.base_model) == ("my_dog_v1", "d0g", "flux-dev")
    assert (config.network_dim, config.network_alpha, config.max_train_steps, config.learning_rate) == (
        16,
        8,
        1800,
        "1e-4",
    )
    assert (config.save_every_n_steps, config.save_precision, config.sample_every_n_steps) == (250, "fp16", 300)
    assert (config.resolution, config.fp8_base, config.caption_dropout_rate, config.seed) == (1024, True, 0.05, 11)
    assert config.sample_prompts.splitlines() == [
        "d0g asleep in the sun --w 1024 --h 768 --s 20 --g 4",
        "a red bicycle --w 1024 --h 768 --s 20 --g 4",
    ]
    assert (config.extra_resolutions, config.ema_decay, config.optimizer_type) == ("512,768", 0.99, "adamw8bit")
    assert (config.enable_bucket, config.timestep_sampling) == (True, "sigmoid"), "as there where nothing is said"
    assert left == ["save.max_step_saves_to_keep"]


def toolkit(**changes: Any) -> tuple[RunConfig, list[str]]:
    """The job with keys of its parts changed or added (`train={"…": …}`), as a config, and what was left out."""
    job = yaml.safe_load(AI_TOOLKIT)
    process = job["config"]["process"][0]
    for part, values in changes.items():
        (process[part][0] if part == "datasets" else process[part]).update(values)
    found, left = read_config(yaml.safe_dump(job, sort_keys=False), ".yaml")
    return resolve_config(found), [name for name in left if name != "save.max_step_saves_to_keep"]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"train": {"gradient_accumulation": 4}}, {"gradient_accumulation_steps": 4, "max_train_steps": 1800}),
        ({"train": {"gradient_accumulation_steps": 4}},  # its steps are batches
         {"gradient_accumulation_steps": 4, "max_train_steps": 450, "save_every_n_steps": 63,
          "sample_every_n_steps": 75}),
        ({"datasets": {"shuffle_tokens": True, "keep_tokens": 2, "flip_x": True, "buckets": False}},
         {"shuffle_caption": True, "keep_tokens": 2, "flip_aug": True, "enable_bucket": False}),
        ({"datasets": {"resolution": 768}}, {"resolution": 768, "extra_resolutions": ""}),
        ({"datasets": {"resolution": [768]}}, {"resolution": 768, "extra_resolutions": ""}),
        ({"network": {"type": "lokr", "lokr_factor": 8, "dropout": 0.1}},
         {"network_algo": "lokr", "lokr_factor": 8, "network_dropout": 0.1}),
        ({"network": {"lokr_full_rank": True, "conv": 16, "network_kwargs": {"ignore_if_contains": []}}},
         {"network_algo": "lora"}),
        ({"network": {"type": "dora"}, "model": {"quantize": False}}, {"use_dora": True, "fp8_base": False}),
        ({"model": {"qtype": "qint8"}}, {"quantize_base": "int8"}),
        ({"model": {"qtype": "qint8", "quantize": False}}, {"quantize_base": "none"}),
        ({"model": {"name_or_path": "black-forest-labs/FLUX.2-klein-base-4B", "arch": "flux2_klein_4b"}},
         {"base_model": "flux2-klein-base-4b"}),
        ({"train": {"ema_config": {"use_ema": False, "ema_decay": 0.99}}}, {"ema_decay": 0}),
        ({"train": {"optimizer_params": {"weight_decay": 0.01, "betas": [0.9, 0.95]}}},
         {"optimizer_args": "weight_decay=0.01 betas=0.9,0.95"}),
        ({"train": {"timestep_type": "linear", "loss_type": "mse", "lr_scheduler": "cosine"}},
         {"timestep_sampling": "uniform", "loss_type": "l2", "lr_scheduler": "cosine"}),
        ({"train": {"disable_sampling": True}}, {"sample_every_n_steps": 0}),
        ({"train": {"optimizer": "pagedadamw8bit"}}, {"optimizer_type": "paged_adamw8bit"}),
        ({"sample": {"prompts": [], "samples": [{"prompt": "a", "width": 512, "seed": 3}, {"prompt": "b"}]}},
         {"sample_prompts": "a --w 512 --d 3 --h 768 --s 20 --g 4\nb --w 1024 --h 768 --s 20 --g 4"}),
    ],
)  # fmt: skip
def test_keys_of_ai_toolkit_that_have_their_like_here(changes: dict[str, Any], wanted: dict[str, Any]) -> None:
    config, left = toolkit(**changes)
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert left == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"train": {"gradient_accumulation_steps": -1}}, "train.gradient_accumulation_steps"),
        ({"train": {"timestep_type": "weighted"}}, "train.timestep_type"),
        ({"network": {"type": "lorm"}}, "network.type"),
        ({"network": {"type": "lokr", "lokr_full_rank": True}}, "network.lokr_full_rank"),
        ({"network": {"network_kwargs": {"only_if_contains": ["single"]}}}, "network.network_kwargs"),
        ({"network": {"type": "dora"}}, "model.quantize"),
        ({"model": {"qtype": "uint3"}}, "model.qtype"),
        ({"train": {"loss_type": "wavelet"}}, "train.loss_type"),
    ],
)  # fmt: skip
def test_keys_of_ai_toolkit_that_have_none_are_named(changes: dict[str, Any], name: str) -> None:
    assert toolkit(**changes)[1] == [name]


@pytest.mark.parametrize(
    ("text", "suffix", "words"),
    [
        ('{"LoRA_type": "Standard", "output_name": "x"}', ".json", "trains Standard"),
        (AI_TOOLKIT.replace("is_flux: true", "is_xl: true"), ".yml", "not FLUX.1"),
        (AI_TOOLKIT.replace("sd_trainer", "image_reference_slider_trainer"), ".yaml", "one process of type sd_trainer"),
        ("a: [", ".yaml", "not YAML"),
        ("a = ", ".toml", "not TOML"),
        ("[1]", ".json", "no set of settings"),
    ],
)
def test_what_is_no_flux_lora_is_refused_in_a_sentence(text: str, suffix: str, words: str) -> None:
    with pytest.raises(ForeignError, match=words) as caught:
        read_config(text, suffix)
    assert "\n" not in str(caught.value)


def test_import_makes_a_run_of_it_and_names_what_was_left_out(capsys: Any, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    file = tmp_path / "job.yaml"
    file.write_text(AI_TOOLKIT)
    answer = call(capsys, "import", file, "--outputs", outputs)
    assert answer.code == 0 and "save.max_step_saves_to_keep" in answer.err, answer.err
    exported = json.loads(call(capsys, "export", "my_dog_v1", "--outputs", outputs).out)
    assert exported["network_dim"] == 16 and exported["concept_sentence"] == "d0g"
    file.write_text("{")
    refused = call(capsys, "import", file, "--outputs", outputs)
    assert refused.code == 64 and "not YAML" in refused.err
