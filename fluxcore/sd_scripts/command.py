"""A run's config as sd-scripts' command line, dataset file and prompts. Pure: nothing is read or written here.

The flags are those of the original FluxGym (its `train_script`), which the same config means there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fluxcore.config import RunConfig
from fluxcore.models.files import PARTS
from fluxcore.models.registry import find_model
from fluxcore.training.prompts import SamplePrompt, parse_prompts

OPTIMIZERS = {
    "adamw": ["adamw8bit"],
    "adamw8bit": ["adamw8bit"],
    "paged_adamw8bit": ["PagedAdamW8bit"],
    "prodigy": ["prodigy"],
    "lion": ["lion"],
    "adamwschedulefree": ["adamwschedulefree"],
    "adafactor": ["adafactor", "--optimizer_args", "relative_step=False", "scale_parameter=False", "warmup_init=False"],
}
# What sd-scripts itself makes of these names, with the steps told instead of taken from --max_train_steps.
SCHEDULES = {
    "linear": "transformers.optimization.get_linear_schedule_with_warmup",
    "cosine": "transformers.optimization.get_cosine_schedule_with_warmup",
    "cosine_with_restarts": "transformers.optimization.get_cosine_with_hard_restarts_schedule_with_warmup",
    "polynomial": "transformers.optimization.get_polynomial_decay_schedule_with_warmup",
}
# Settings whose default is all that sd-scripts have, or that they would count in other steps than FluxGym does.
OWN_TRAINER_ONLY = (
    "dataset_config",
    "extra_resolutions",
    "enable_bucket",
    "validation_split",
    "network_algo",
    "use_rslora",
    "use_dora",
    "train_layers",
    "ema_decay",
)
SAMPLINGS = ("shift", "flux_shift", "sigmoid", "uniform")


def not_theirs(config: RunConfig) -> list[str]:
    """The settings of a config that sd-scripts can't follow."""
    found = [name for name in OWN_TRAINER_ONLY if getattr(config, name) != RunConfig.model_fields[name].default]
    return found + ([] if config.timestep_sampling in SAMPLINGS else ["timestep_sampling"])


SPLIT_MODE_SWAPS = 18
"""FluxGym's 12G preset says --split_mode, which sd-scripts today read as so many blocks to swap."""


@dataclass(frozen=True)
class Plan:
    """The steps of an attempt: it begins after step `first` of `total`; an epoch has `per_epoch`."""

    first: int
    total: int
    per_epoch: int

    def epoch(self, step: int) -> int:
        """The epoch, from 1, that `step` belongs to."""
        return max(0, step - 1) // self.per_epoch + 1


@dataclass(frozen=True)
class Files:
    """What an attempt's sd-scripts reads and where it writes."""

    dataset_config: Path
    prompts: Path | None
    output: Path
    logs: Path


def options(config: RunConfig, files: Files, plan: Plan, resume_from: Path | None = None) -> list[str]:
    """flux_train_network.py's options."""
    given = [item for name in PARTS for item in (f"--{name}", str(getattr(config, name)))]
    if config.tokenizer_cache_dir:
        given += ["--tokenizer_cache_dir", config.tokenizer_cache_dir]
    given += ["--output_dir", str(files.output), "--output_name", config.lora_name, "--save_model_as", "safetensors"]
    given += ["--dataset_config", str(files.dataset_config), "--cache_latents_to_disk"]
    given += ["--logging_dir", str(files.logs), "--log_with", "tensorboard"]
    if config.caption_dropout_rate or config.shuffle_caption:  # sd-scripts can't where encodings are cached
        given += ["--caption_dropout_rate", str(config.caption_dropout_rate)]
    else:
        given += ["--cache_text_encoder_outputs", "--cache_text_encoder_outputs_to_disk"]
    given += ["--highvram", "--sdpa", "--max_data_loader_n_workers", str(config.workers)]
    if config.workers:
        given.append("--persistent_data_loader_workers")
    given += _precision(config) + _network(config, fresh=resume_from is None)
    given += ["--seed", str(config.seed), "--learning_rate", config.learning_rate]
    given += ["--optimizer_type", *_optimizer(config), "--max_grad_norm", str(config.max_grad_norm)]
    if config.gradient_accumulation_steps > 1:
        given += ["--gradient_accumulation_steps", str(config.gradient_accumulation_steps)]
    given += [
        "--loss_type",
        config.loss_type,
        *_huber(config),
        "--model_prediction_type",
        "raw",
        "--guidance_scale",
        str(config.guidance_scale),
    ]
    given += ["--timestep_sampling", config.timestep_sampling, "--sigmoid_scale", str(config.sigmoid_scale)]
    given += ["--discrete_flow_shift", str(config.discrete_flow_shift)]
    if config.weighting_scheme != "none":
        given += ["--weighting_scheme", config.weighting_scheme]
    return given + _saves(config) + _samples(config, files, plan) + _length(config, plan, resume_from)


def _optimizer(config: RunConfig) -> list[str]:
    words, more = OPTIMIZERS[config.optimizer_type], config.optimizer_args.split()
    return [*words, *([] if "--optimizer_args" in words or not more else ["--optimizer_args"]), *more]


def _huber(config: RunConfig) -> list[str]:
    """FluxGym's threshold is the same at every noise level; sd-scripts' falls unless told not to."""
    if config.loss_type == "l2":
        return []
    return ["--huber_schedule", "constant", "--huber_c", str(config.huber_c)]


def _precision(config: RunConfig) -> list[str]:
    given = ["--mixed_precision", config.mixed_precision, "--save_precision", config.save_precision]
    if config.fp8_base and config.mixed_precision != "no":  # sd-scripts refuses the two together
        given.append("--fp8_base")
    if config.blocks_to_swap and not (config.vram == "12G" and config.blocks_to_swap == SPLIT_MODE_SWAPS):
        given += ["--blocks_to_swap", str(config.blocks_to_swap)]
    return [*given, "--gradient_checkpointing"] if config.gradient_checkpointing else given


def _network(config: RunConfig, *, fresh: bool) -> list[str]:
    given = ["--network_module", "networks.lora_flux", "--network_dim", str(config.network_dim)]
    given += ["--network_alpha", str(config.network_alpha)]
    if config.network_dropout:
        given += ["--network_dropout", str(config.network_dropout)]
    if config.network_weights and fresh:
        given += ["--network_weights", config.network_weights]
    chosen = {
        "train_blocks": "single" if config.vram == "12G" else config.train_blocks,
        "train_double_block_indices": config.train_double_block_indices,
        "train_single_block_indices": config.train_single_block_indices,
    }
    arguments = [f"{name}={value}" for name, value in chosen.items() if value != "all"]
    given += ["--split_mode"] if config.vram == "12G" else []
    return [*given, "--network_args", *arguments] if arguments else given


def _saves(config: RunConfig) -> list[str]:
    given = ["--save_state"] if config.enable_checkpointing else []
    for name in ("save_every_n_epochs", "save_every_n_steps"):
        if getattr(config, name):  # sd-scripts divides by it: 0 would break it off
            given += [f"--{name}", str(getattr(config, name))]
    return given


def _samples(config: RunConfig, files: Files, plan: Plan) -> list[str]:
    if files.prompts is None:
        return []
    given = ["--sample_prompts", str(files.prompts), "--sample_every_n_steps", str(config.sample_every_n_steps)]
    return [*given, "--sample_at_first"] if config.sample_at_first and not plan.first else given


def _length(config: RunConfig, plan: Plan, resume_from: Path | None) -> list[str]:
    """How far to train, and along which learning rates; docs/sd-scripts.md says why a resume is told so.

    A resume counts from 0 again and is given only the steps that are left. The schedule goes by the whole run.
    """
    warm_up = config.lr_warmup_steps
    if resume_from is not None and config.lr_scheduler in SCHEDULES:
        schedule = ["--lr_scheduler_type", SCHEDULES[config.lr_scheduler]]
        schedule += ["--lr_scheduler_args", f"num_warmup_steps={warm_up}", f"num_training_steps={plan.total}"]
        if config.lr_scheduler == "cosine_with_restarts":
            schedule.append(f"num_cycles={config.lr_scheduler_num_cycles}")
        if config.lr_scheduler == "polynomial":
            schedule.append(f"power={config.lr_scheduler_power}")
    else:
        schedule = ["--lr_scheduler", config.lr_scheduler]
        if warm_up and config.lr_scheduler != "constant":  # which takes none, and refuses it
            schedule += ["--lr_warmup_steps", str(warm_up)]
        if config.lr_scheduler == "cosine_with_restarts":
            schedule += ["--lr_scheduler_num_cycles", str(config.lr_scheduler_num_cycles)]
        if config.lr_scheduler == "polynomial":
            schedule += ["--lr_scheduler_power", str(config.lr_scheduler_power)]
    if resume_from is not None:
        left = ["--max_train_steps", str(plan.total - plan.first)]
        return [*schedule, "--resume", str(resume_from), "--initial_step", "0", *left]
    if config.max_train_steps:
        return [*schedule, "--max_train_steps", str(config.max_train_steps)]
    return [*schedule, "--max_train_epochs", str(config.max_train_epochs)]


def dataset_toml(config: RunConfig, images: Path) -> str:
    """sd-scripts' dataset file: one subset, the folder `images`."""
    lines = ["[general]", f"shuffle_caption = {str(config.shuffle_caption).lower()}", 'caption_extension = ".txt"']
    lines += [f"keep_tokens = {config.keep_tokens}", f"flip_aug = {str(config.flip_aug).lower()}", ""]
    lines += ["[[datasets]]", f"resolution = {config.resolution}", f"batch_size = {config.train_batch_size}", ""]
    lines += ["[[datasets.subsets]]", f"image_dir = {_toml(str(images))}", f"num_repeats = {config.num_repeats}"]
    if config.concept_sentence:
        lines.append(f"class_tokens = {_toml(config.concept_sentence)}")
    return "\n".join(lines) + "\n"


def sample_prompts(config: RunConfig) -> list[tuple[SamplePrompt, int]]:
    """What to draw, and the seed of each; nothing where sampling is off. Raises ValueError with the line at fault."""
    if not config.sample_every_n_steps:
        return []
    prompts = parse_prompts(config.sample_prompts, find_model(config.base_model).sample_steps)
    return [
        (prompt, config.seed + index if prompt.seed is None else prompt.seed) for index, prompt in enumerate(prompts)
    ]


def prompt_lines(config: RunConfig) -> list[str]:
    """`sample_prompts` as sd-scripts reads them, every flag given: its own defaults are others than FluxGym's."""
    lines = []
    for prompt, seed in sample_prompts(config):
        size = f"--w {prompt.width or config.resolution} --h {prompt.height or config.resolution}"
        line = f"{prompt.text} {size} --d {seed} --s {prompt.steps} --l {prompt.scale} --g {prompt.guidance}"
        lines.append(f"{line} --n {prompt.negative}" if prompt.negative else line)
    return lines


def _toml(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's, but for DEL, which JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
