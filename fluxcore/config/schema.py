"""The one schema of a run's config: the source of the form, of `--set`, of validation and of the docs.

Names and types are the seed's and sd-scripts' where they have one. 0 in any `…_every_n_…` means never.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fluxcore.errors import UserError
from fluxcore.trainers import DEFAULT_TRAINER, TRAINERS

from .arguments import parse_blocks, parse_optimizer_args
from .gpu_ids import parse_gpu_ids
from .migrate import SCHEMA
from .names import NAME_RULE, is_valid_name, slugify

GROUPS = {
    "lora": "LoRA info",
    "dataset": "Dataset",
    "training": "Training",
    "memory": "Memory",
    "network": "Network",
    "flow": "Timesteps and guidance",
    "samples": "Samples",
    "checkpoints": "Checkpoints",
    "monitoring": "Monitoring",
    "trainer": "Trainer",
}

if TYPE_CHECKING:
    TrainerName = str
else:
    TrainerName = Literal[tuple(TRAINERS)]


class ConfigError(UserError):
    """A config that can't be used; the message is a sentence for a person, `fields` maps each field to its own."""

    def __init__(self, message: str, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.fields = fields or {}


# A config is one line of the log (256 KiB); a character may take six bytes in it.
MOST_STEPS = 10_000_000
MOST_TEXT, MOST_PATH, MOST_DATASET, MOST_MODEL_PATH = 30_000, 2000, 1000, 800


def _option(default: Any, group: str, help: str, *, advanced: bool = True, **constraints: Any) -> Any:
    """A field with its form group, its explanation and its limits; `advanced` fields hide behind an unfold."""
    return Field(default, description=help, json_schema_extra={"group": group, "advanced": advanced}, **constraints)


class RunConfig(BaseModel):
    """All of a run's settings. Unknown keys are refused here; `from_export` names and drops them."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    lora_name: str = _option("", "lora", "The run's name and that of its files.", advanced=False)
    concept_sentence: str = _option(
        "",
        "lora",
        "The trigger word (or a short phrase): what you will write in a prompt to call up what the LoRA learned.",
        advanced=False,
        max_length=200,
    )
    base_model: str = _option(
        "flux-mini",
        "lora",
        "The model to train on: a name of the list, or the path of a folder that holds one (diffusers' or ComfyUI's).",
        advanced=False,
        max_length=MOST_PATH,
    )
    vram: str = _option(
        "20G", "lora", "The GPU's memory: it sets how the base model is held, where captions are encoded, the "
        "optimizer and gradient checkpointing.",
        advanced=False, pattern=r"^\d{1,3}G$",
    )  # fmt: skip

    num_repeats: int = _option(
        10, "dataset", "How often each picture is seen in an epoch.", advanced=False, ge=1, le=1000
    )
    resolution: int = _option(
        512, "dataset", "Training size in pixels: pictures are scaled and cut to a square of it.", advanced=False,
        ge=16, le=2048, multiple_of=16,
    )  # fmt: skip
    extra_resolutions: str = _option(
        "",
        "dataset",
        "Further training sizes in pixels with commas between them, such as 384,768: each picture is trained at every "
        "one of them.",
        max_length=100,
    )
    enable_bucket: bool = _option(
        False, "dataset", "Train pictures in their own aspect ratio (aspect-ratio buckets) instead of cut to a square."
    )
    min_bucket_reso: int = _option(
        256, "dataset", "Shortest side of a bucket in pixels; half the resolution where that is below 256.",
        ge=16, le=4096, multiple_of=16,
    )  # fmt: skip
    max_bucket_reso: int = _option(
        1024, "dataset", "Longest side of a bucket in pixels; never below the resolution.",
        ge=16, le=4096, multiple_of=16,
    )  # fmt: skip
    bucket_reso_steps: int = _option(
        64, "dataset", "Sides of buckets are multiples of this many pixels; of 16 where the resolution is below 256.",
        ge=16, le=256, multiple_of=16,
    )  # fmt: skip
    bucket_no_upscale: bool = _option(
        True, "dataset", "Pictures smaller than their bucket are trained in a smaller one instead of enlarged."
    )
    flip_aug: bool = _option(
        False, "dataset", "Half of the time train the mirrored picture; not for faces, writing or anything with a side."
    )
    shuffle_caption: bool = _option(
        False, "dataset", "Train captions with their tags (the parts between commas) in changing order."
    )
    keep_tokens: int = _option(
        1, "dataset", "So many first tags stay in place where captions are shuffled.", ge=0, le=255
    )
    shuffle_caption_forms: int = _option(
        8, "dataset", "Orders of tags that each shuffled caption has; each one is encoded and cached.", ge=2, le=64
    )
    caption_dropout_rate: float = _option(
        0.0, "dataset", "Share of pictures trained without their caption, 0 to 1.", ge=0, le=1
    )
    prior_loss_weight: float = _option(
        1.0, "dataset", "Weight of the loss on regularisation pictures (is_reg in dataset_config), 1 = as the others.",
        ge=0, le=100,
    )  # fmt: skip
    dataset_config: str = _option(
        "", "dataset", "sd-scripts' dataset file (TOML), its path or its text: several folders with their own settings "
        "instead of the run's one. Folders count from the file, in a text from the run's dataset folder.",
        max_length=MOST_DATASET,
    )  # fmt: skip
    validation_split: float = _option(
        0.0, "dataset", "Share of pictures held out to measure the loss on, 0 to 0.5; 0 = none.", ge=0, le=0.5
    )
    validate_every_n_steps: int = _option(
        50, "dataset", "Measure the loss on held-out pictures every N steps; at each save it is measured anyway.",
        ge=0, le=MOST_STEPS,
    )  # fmt: skip

    max_train_epochs: int = _option(
        16, "training", "How often to go through all pictures.", advanced=False, ge=1, le=10_000
    )
    max_train_steps: int = _option(0, "training", "Optimizer steps; above 0 it wins over epochs.", ge=0, le=MOST_STEPS)
    train_batch_size: int = _option(
        1, "training", "Pictures per batch; a step has gradient_accumulation_steps batches on each GPU.", ge=1, le=256
    )
    gradient_accumulation_steps: int = _option(
        1, "training", "Batches per optimizer step: as a larger batch in the memory of one.", ge=1, le=1024
    )
    learning_rate: str = _option("8e-4", "training", "Size of a step, as in 8e-4.", advanced=False)
    optimizer_type: Literal[
        "adamw", "adamw8bit", "paged_adamw8bit", "adafactor", "prodigy", "lion", "adamwschedulefree"
    ] = _option(
        "adamw",
        "training",
        "The optimizer: adamw; adamw8bit and adafactor (less memory); paged_adamw8bit (waits in the host's memory "
        "where the GPU's is short; NVIDIA only); lion (a rate a third to a tenth of adamw's); "
        "prodigy (finds the rate itself: learning_rate 1); adamwschedulefree (needs no schedule: lr_scheduler "
        "constant).",
    )
    optimizer_args: str = _option(
        "", "training", "Further arguments of the optimizer, such as weight_decay=0.1 betas=0.9,0.99.", max_length=200
    )
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = _option("constant", "training", "How the learning rate runs over the training.")
    lr_warmup_steps: int = _option(
        0, "training", "Steps in which the learning rate rises from 0; not with constant.", ge=0, le=1_000_000
    )
    lr_scheduler_num_cycles: int = _option(
        1, "training", "How often cosine_with_restarts starts from the full learning rate.", ge=1, le=1000
    )
    lr_scheduler_power: float = _option(
        1.0, "training", "Exponent by which polynomial falls; 1 = a straight line.", gt=0, le=10
    )
    max_grad_norm: float = _option(1.0, "training", "Gradients are clipped to this norm; 0 = not.", ge=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = _option(
        "bf16", "training", "Precision of the base model; the LoRA itself is always trained in 32 bit."
    )
    save_precision: Literal["float", "bf16", "fp16"] = _option(
        "bf16", "training", "Precision of the LoRA file; states always keep 32 bit."
    )
    lora_format: Literal["sd-scripts", "diffusers", "comfyui"] = _option(
        "sd-scripts", "training", "Key names in the LoRA file. A DoRA, LoKr or LoHa has but one form."
    )
    gradient_checkpointing: bool = _option(
        True, "memory", "Do each block's forward pass again for the backward pass instead of keeping all: half as much "
        "time again, for FLUX.1 at 512 pixels 13 GiB less a picture.",
    )  # fmt: skip
    fp8_base: bool = _option(
        False, "memory", "Hold the base model in 8-bit floats with a scale for each row: for FLUX.1 11 GiB less."
    )
    quantize_base: Literal["none", "int8", "nf4"] = _option(
        "none", "memory", "Hold the base model in 8-bit integers (as small as fp8_base, closer to the original) or in "
        "4-bit NF4 (for FLUX.1 16 GiB less, coarser and slower). Goes before fp8_base.",
    )  # fmt: skip
    gradient_checkpointing_interval: int = _option(
        1, "memory", "With gradient checkpointing: compute only every so-many-th block twice; 2 is every other one. "
        "sd-scripts has it of every block.",
        ge=1, le=100,
    )  # fmt: skip
    blocks_to_swap: int = _option(
        0, "memory", "So many double blocks (two single ones count as one) wait in the host's memory for their turn: "
        "less memory, slower.",
        ge=0, le=35,
    )  # fmt: skip
    shard_base: bool = _option(
        False,
        "memory",
        "With several GPUs: split the base model over them (FSDP) instead of holding all of it on each.",
    )
    compile: Literal["off", "auto", "on"] = _option(
        "off", "memory", "Compile the transformer's blocks (torch.compile): a step takes a fifth to a third less, "
        "after up to a minute of compiling. auto does it where the steps that are left repay that. With a base in "
        "NF4 it can't be done: that runs as written and says so.",
    )  # fmt: skip
    encode_on_cpu: bool = _option(
        False, "memory", "Encode captions on the CPU: FLUX.1's text encoders take 9 GiB of a GPU; seconds a caption."
    )
    seed: int = _option(
        42, "training", "Same seed, same training, to the bit on a CPU.", advanced=False, ge=0, le=2**32 - 1
    )
    workers: int = _option(2, "training", "Threads that read pictures.", ge=0, le=64)
    gpu_ids: str = _option(
        "",
        "training",
        "GPUs by nvidia-smi's number or uuid, such as 1 or 0,1: the run waits until exactly these are free, and trains "
        "on all of them; empty = any one.",
        max_length=500,
    )
    num_processes: int = _option(
        0, "training", "Processes that train together, each with batches of its own: 0 = one for each GPU that gpu_ids "
        "names. More than one multiply the pictures of a step.",
        ge=0, le=64,
    )  # fmt: skip

    network_dim: int = _option(4, "network", "Rank of the LoRA: more can hold more.", advanced=False, ge=1, le=1024)
    network_alpha: float = _option(1.0, "network", "The LoRA's output is scaled by alpha / rank.", gt=0, le=4096)
    network_dropout: float = _option(0.0, "network", "Dropout inside the LoRA, 0 to 1.", ge=0, lt=1)
    network_algo: Literal["lora", "lokr", "loha"] = _option(
        "lora", "network", "What is trained: a lora, or LyCORIS' lokr or loha (files that ComfyUI reads)."
    )
    use_rslora: bool = _option(
        False, "network", "Scale by alpha / √rank instead of alpha / rank (rsLoRA): for ranks of 32 and more."
    )
    use_dora: bool = _option(
        False, "network", "Train the weights' magnitudes as well (DoRA): nearer to full training, about a third slower."
    )
    lokr_factor: int = _option(
        -1, "network", "For lokr: size of the smaller matrix; -1 = as near to the other as can be.", ge=-1, le=64
    )
    train_blocks: Literal["all", "double", "single"] = _option(
        "all", "network", "Which of FLUX's blocks are trained: all, double or single."
    )
    train_double_block_indices: str = _option(
        "all", "network", "Numbers of the double blocks that are trained: all, none, or such as 0,3-7.", max_length=100
    )
    train_single_block_indices: str = _option(
        "all",
        "network",
        "Numbers of the single blocks that are trained: all, none, or such as 7,20-37.",
        max_length=100,
    )  # fmt: skip
    train_layers: str = _option(
        "all", "network", "Which layers of a block are trained: all, or some of attn, mlp and mod (its modulation).",
        max_length=20,
    )  # fmt: skip
    ema_decay: float = _option(
        0.0, "network", "Save and draw a moving average of the weights: the share that stays at a step, such as 0.99; "
        "0 = none.",
        ge=0, lt=1,
    )  # fmt: skip
    network_weights: str = _option(
        "", "network", "A LoRA file to continue from; empty = start afresh.", max_length=MOST_PATH
    )

    guidance_scale: float = _option(
        1.0, "flow", "Guidance value given to a guidance-distilled base while it trains.", ge=0, le=100
    )
    timestep_sampling: Literal["shift", "flux_shift", "sigmoid", "uniform", "logit_normal", "mode"] = _option(
        "shift",
        "flow",
        "How noise levels are drawn: shift, flux_shift (by resolution), sigmoid, uniform, logit_normal or mode.",
    )
    discrete_flow_shift: float = _option(3.1582, "flow", "The shift, where timestep_sampling is shift.", gt=0, le=100)
    sigmoid_scale: float = _option(
        1.0, "flow", "Spread of the noise levels before the sigmoid, for shift, flux_shift and sigmoid.", gt=0, le=10
    )
    logit_mean: float = _option(
        0.0, "flow", "Middle of logit_normal; below 0 trains fine detail more, above 0 layout.", ge=-10, le=10
    )
    logit_std: float = _option(1.0, "flow", "Spread of logit_normal.", gt=0, le=10)
    mode_scale: float = _option(
        1.29, "flow", "How much more often mode draws middle noise levels; 0 = uniform.", ge=0, le=1.75
    )
    weighting_scheme: Literal["none", "sigma_sqrt", "cosmap"] = _option(
        "none", "flow", "How much each noise level's loss counts: none (all the same), sigma_sqrt (low ones far more) "
        "or cosmap (middle ones more).",
    )  # fmt: skip
    loss_type: Literal["l2", "huber", "smooth_l1"] = _option(
        "l2", "flow", "The loss: l2, or huber and smooth_l1, which heed outliers less."
    )
    huber_c: float = _option(
        0.1, "flow", "Error from which huber and smooth_l1 grow linearly instead of quadratically.", gt=0, le=100
    )

    sample_prompts: str = _option(
        "", "samples", "One prompt a line; --w --h --d --s --l --g --n set width, height, seed, steps, scale, guidance "
        "and negative prompt. A line that starts with # is skipped.",
        advanced=False, max_length=MOST_TEXT,
    )  # fmt: skip
    sample_every_n_steps: int = _option(
        0, "samples", "Draw the prompts every N steps; 0 = never.", advanced=False, ge=0, le=MOST_STEPS
    )

    sample_at_first: bool = _option(True, "samples", "Draw the prompts before the first step too, to compare with.")

    enable_checkpointing: bool = _option(True, "checkpoints", "Keep states to resume from.", advanced=False)
    save_every_n_epochs: int = _option(
        4,
        "checkpoints",
        "Save LoRA and state every N epochs; 0 = only at the end.",
        advanced=False,
        ge=0,
        le=MOST_STEPS,
    )
    save_every_n_steps: int = _option(
        0, "checkpoints", "Save LoRA and state every N steps as well; 0 = never.", ge=0, le=MOST_STEPS
    )
    save_last_n_epochs_state: int = _option(
        0, "checkpoints", "Keep only the newest N epoch states; 0 = all of them.", ge=0, le=MOST_STEPS
    )
    save_last_n_steps_state: int = _option(
        0, "checkpoints", "Keep only the step states of the last N steps; 0 = all of them.", ge=0, le=MOST_STEPS
    )
    resume_from_checkpoint: str = _option(
        "", "checkpoints", "A state folder to start from; empty = fresh.", max_length=MOST_PATH
    )

    enable_monitoring: bool = _option(
        True, "monitoring", "Find a stuck training, end it and note the checkpoint to go on from.", advanced=False
    )
    stall_seconds: float = _option(
        300, "monitoring", "Seconds without progress after which a training counts as stuck.", ge=1, le=86_400
    )
    sample_gpu_seconds: float = _option(5, "monitoring", "Seconds between two GPU samples.", ge=0.1, le=3600)
    stop_grace_seconds: float = _option(
        60, "monitoring", "Seconds a stopped trainer gets to save a last checkpoint.", ge=0, le=3600
    )
    auto_resume: int = _option(
        2, "monitoring", "How often a stuck or crashed run is resumed by itself; 0 = never.", ge=0, le=100
    )

    alerts: str = _option(
        "all", "monitoring", "Who is told how the run goes: all alert targets, off, or names of targets: phone, mail.",
        max_length=1000,
    )  # fmt: skip

    trainer: TrainerName = _option(
        DEFAULT_TRAINER, "trainer", "The program that trains: FluxGym's own, or kohya's sd-scripts where they are."
    )
    pretrained_model_name_or_path: str = _option(
        "",
        "trainer",
        "A file of yours with the base model's transformer, as flux1-dev.safetensors; with ae, clip_l and t5xxl, for "
        "FLUX.2 klein with ae and qwen3.",
        max_length=MOST_MODEL_PATH,
    )
    ae: str = _option("", "trainer", "Your file of the autoencoder, as ae.safetensors.", max_length=MOST_MODEL_PATH)
    clip_l: str = _option("", "trainer", "Your file of CLIP-L, as clip_l.safetensors.", max_length=MOST_MODEL_PATH)
    t5xxl: str = _option("", "trainer", "Your file of T5, as t5xxl_fp16.safetensors.", max_length=MOST_MODEL_PATH)
    qwen3: str = _option(
        "", "trainer", "Your file of FLUX.2 klein's Qwen3, as qwen_3_4b.safetensors.", max_length=MOST_MODEL_PATH
    )
    tokenizer_cache_dir: str = _option(
        "",
        "trainer",
        "The folder of the tokenizers for such files; empty = where they usually are.",
        max_length=MOST_PATH,
    )

    @field_validator("lora_name")
    @classmethod
    def _name_is_valid(cls, value: str) -> str:
        if value and not is_valid_name(value):
            raise ValueError(NAME_RULE)
        return value

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _learning_rate_is_a_number(cls, value: Any) -> str:
        text = str(value).strip()
        try:
            rate = float(text)
        except ValueError:
            raise ValueError("must be a number such as 8e-4") from None
        if not math.isfinite(rate) or not 0 < rate <= 10:
            raise ValueError("must be more than 0 and at most 10")
        if len(text) > 32:
            raise ValueError("must be a number such as 8e-4, at most 32 characters long")
        return text

    @field_validator("alerts", mode="before")
    @classmethod
    def _alerts_are_names(cls, value: Any) -> str:
        names = [name.strip() for name in str(value).split(",") if name.strip()]
        names = [name.lower() if name.lower() in ("all", "off") else name for name in names]
        alone = len(names) == 1 or not {"all", "off"} & set(names)
        if not names or not alone or not all(is_valid_name(name) for name in names):
            # Without what was given: an address, with its secret, may have been put here.
            raise ValueError("alerts takes all, off, or names of alert targets such as phone, mail; never an address")
        return ", ".join(dict.fromkeys(names))

    @field_validator("extra_resolutions", mode="before")
    @classmethod
    def _resolutions_are_sizes(cls, value: Any) -> str:
        names = [name.strip() for name in str(value).split(",") if name.strip()]
        if not all(name.isdecimal() and 16 <= int(name[:9]) <= 2048 and int(name[:9]) % 16 == 0 for name in names):
            raise ValueError("must be multiples of 16 from 16 to 2048 with commas between them, such as 384,768")
        return ",".join(names)

    @field_validator("train_double_block_indices", "train_single_block_indices")
    @classmethod
    def _blocks_are_numbers(cls, value: str) -> str:
        parse_blocks(value)
        return value

    @field_validator("train_layers")
    @classmethod
    def _layers_are_kinds(cls, value: str) -> str:
        kinds = list(dict.fromkeys(kind.strip() for kind in value.lower().split(",") if kind.strip()))
        if kinds != ["all"] and (not kinds or set(kinds) - {"attn", "mlp", "mod"}):
            raise ValueError("must be all, or some of attn, mlp and mod with commas between them")
        return ",".join(kinds)

    @model_validator(mode="after")
    def _processes_have_gpus(self) -> RunConfig:
        named = len(parse_gpu_ids(self.gpu_ids))
        if named and self.num_processes > named:
            raise ValueError(
                f"num_processes is {self.num_processes}, but gpu_ids names {named}: one for each GPU at most"
            )
        if self.shard_base and self.processes == 1:
            raise ValueError("shard_base needs several GPUs: name them in gpu_ids, or set shard_base=false")
        if self.shard_base and self.compile != "off":
            raise ValueError("shard_base can't be combined with compile: set compile=off")
        if self.shard_base and (self.fp8_base or self.quantize_base != "none" or self.blocks_to_swap or self.use_dora):
            raise ValueError(
                "shard_base splits the base as it is: it goes with fp8_base=false, quantize_base=none, "
                "blocks_to_swap=0 and use_dora=false"
            )
        return self

    @model_validator(mode="after")
    def _dora_is_a_lora(self) -> RunConfig:
        if self.network_algo != "lora" and (self.use_dora or self.use_rslora):
            raise ValueError(f"use_dora and use_rslora go with network_algo lora, not with {self.network_algo}")
        if self.use_dora and (self.fp8_base or self.quantize_base != "none" or self.blocks_to_swap):
            raise ValueError(
                "use_dora measures the base's own weights: it goes with fp8_base=false, quantize_base=none and "
                "blocks_to_swap=0"
            )
        return self

    @field_validator("optimizer_args")
    @classmethod
    def _optimizer_args_are_pairs(cls, value: str) -> str:
        parse_optimizer_args(value)
        return value

    @field_validator("gpu_ids", mode="before")
    @classmethod
    def _gpu_ids_are_gpus(cls, value: Any) -> str:
        return ",".join(parse_gpu_ids(str(value)))

    @field_validator("concept_sentence", "sample_prompts", mode="before")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        return value.replace("\0", "") if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_finite(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key, value in values.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"{key} must be a finite number")
        return values

    @property
    def rate(self) -> float:
        """`learning_rate` as a number."""
        return float(self.learning_rate)

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.num_processes or len(parse_gpu_ids(self.gpu_ids)) or 1 if self.trainer == DEFAULT_TRAINER else 1

    @property
    def batches_per_step(self) -> int:
        """Batches of one optimizer step, in all processes together."""
        return self.gradient_accumulation_steps * self.processes

    @property
    def more_resolutions(self) -> list[int]:
        """`extra_resolutions` as numbers."""
        return [int(size) for size in self.extra_resolutions.split(",") if size]

    def steps_per_epoch(self, pictures: int) -> int:
        """Optimizer steps in one epoch over `pictures` pictures, each at every size (the last step may be smaller).

        What the present pictures give, with buckets and subsets, is `fluxcore.dataset.layout`'s to say.
        """
        sizes = len({self.resolution, *self.more_resolutions}) if self.trainer == DEFAULT_TRAINER else 1
        batches = sizes * math.ceil(pictures * self.num_repeats / self.train_batch_size)
        return max(1, math.ceil(batches / self.batches_per_step))

    def total_steps(self, pictures: int) -> int:
        """Optimizer steps of the whole run."""
        return self.max_train_steps or self.max_train_epochs * self.steps_per_epoch(pictures)


def parse_config(values: dict[str, Any]) -> RunConfig:
    """`values` as a config, or ConfigError with one sentence for each wrong field."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        fields = {}
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else "config"
            fields[name] = sentence(name, problem)
        raise ConfigError("; ".join(fields.values()), fields) from None


def parse_saved(values: dict[str, Any]) -> RunConfig:
    """A config out of a log: settings that a later version of FluxGym knows are left out. Raises ConfigError."""
    return parse_config({name: value for name, value in values.items() if name in RunConfig.model_fields})


def saved_config(config: RunConfig) -> dict[str, Any]:
    """The data of a `config.saved`."""
    return {"config": config.model_dump(), "schema": SCHEMA}


def sentence(name: str, problem: Any, known: Iterable[str] = ()) -> str:
    """What is wrong with the field `name`, from pydantic's `problem`; `known`: the names there are."""
    kind, context, given = problem["type"], problem.get("ctx", {}), problem.get("input")
    if kind == "extra_forbidden":
        alike = get_close_matches(name, known or RunConfig.model_fields, 1)
        return f"{name} is not a setting" + (f"; did you mean {alike[0]}?" if alike else "")
    what = {
        "greater_than_equal": lambda: f"must be at least {context['ge']}",
        "greater_than": lambda: f"must be more than {context['gt']}",
        "less_than_equal": lambda: f"must be at most {context['le']}",
        "less_than": lambda: f"must be less than {context['lt']}",
        "multiple_of": lambda: f"must be a multiple of {context['multiple_of']}",
        "string_too_long": lambda: f"must be at most {context['max_length']:,} characters long",
        "int_parsing": lambda: "must be a whole number",
        "int_from_float": lambda: "must be a whole number",
        "float_parsing": lambda: "must be a number",
        "bool_parsing": lambda: "must be true or false",
        "literal_error": lambda: f"must be one of {context['expected']}",
        "value_error": lambda: str(context["error"]),
    }.get(kind, lambda: problem["msg"][:1].lower() + problem["msg"][1:])()
    if what.startswith(name) or name == "config":
        return what
    if what == NAME_RULE:
        near = slugify(str(given))
        return f"{str(given)[:60]!r} can't be its name: {what}" + (f"; {near} would do" if near else "")
    return f"{name} {what} (got {str(given)[:60]!r})" if given not in (None, "") else f"{name} {what}"


def defaults() -> dict[str, Any]:
    """Every setting with its default."""
    return RunConfig().model_dump()
