"""What a LoRA's file says about its training, in the keys that sd-scripts writes and other programs show.

`ss_*`: the names and the way to write a value (`str()`, JSON for tables) are those of sd-scripts' `train_network.py`;
shops of LoRAs, kohya's metadata viewers, ComfyUI's and Forge's browsers read them. `modelspec.*`: Stability AI's
ModelSpec 1.0.1, as sd-scripts fills it for FLUX. A safetensors file's metadata are strings only.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fluxcore.training.lora_file import implementation
from fluxcore.training.lora_keys import LoraFormat

_ARCHITECTURES = {"dev": "flux-1-dev", "schnell": "flux-1-schnell"}
# Fields of TrainingInfo that modelspec has a place for, and sd-scripts' `ss_` keys have not.
_MODELSPEC_FIELDS = (
    "title",
    "author",
    "description",
    "license",
    "tags",
    "trigger_phrase",
    "usage_hint",
    "thumbnail",
    "implementation_version",
)


@dataclass(frozen=True, kw_only=True)
class TrainingInfo:
    """Facts about one training run, the same for all its files. None means not known, and is not written.

    Where nothing else is said, a field `x` becomes `ss_x`.
    """

    output_name: str
    network_dim: int  # the rank, as it was asked for
    network_alpha: float  # as it was asked for; a fused module's own alpha is in its tensor
    learning_rate: float
    num_train_images: int  # with repeats
    num_epochs: int
    max_train_steps: int
    seed: int
    resolution: tuple[int, int]  # width, height in pixels; also modelspec's
    lora_format: LoraFormat = "sd-scripts"  # the names in the file: modelspec's implementation; not written as ss_
    family: str = "flux"  # not written as ss_
    flux_type: str = "dev"  # "dev", "schnell" or another: modelspec's architecture; not written as ss_
    training_started_at: float | None = None  # seconds since 1970
    session_id: int | None = None
    num_reg_images: int | None = None
    num_batches_per_epoch: int | None = None
    batch_size_per_device: int | None = None
    total_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    gradient_checkpointing: bool | None = None
    optimizer: str | None = None  # with its arguments, `AdamW8bit(weight_decay=0.1)`
    lr_scheduler: str | None = None
    lr_warmup_steps: int | None = None
    max_grad_norm: float | None = None
    mixed_precision: str | None = None
    cache_latents: bool | None = None
    loss_type: str | None = None
    timestep_sampling: str | None = None
    sigmoid_scale: float | None = None
    discrete_flow_shift: float | None = None
    model_prediction_type: str | None = None
    guidance_scale: float | None = None
    sd_model_name: str | None = None  # the base model's file or repository
    sd_model_hash: str | None = None  # of a single file, as model_hash has it
    network_module: str = "networks.lora_flux"
    network_args: Mapping[str, Any] | None = None
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None  # folder -> tag -> count, see count_tags
    dataset_dirs: Mapping[str, Mapping[str, int]] | None = None  # folder -> {"n_repeats": …, "img_count": …}
    bucket_info: Mapping[str, Any] | None = None
    training_comment: str | None = None
    # modelspec's, not written as ss_
    title: str | None = None  # the output name where None
    author: str | None = None
    description: str | None = None
    license: str | None = None
    tags: str | None = None  # with commas between them
    trigger_phrase: str | None = None
    usage_hint: str | None = None
    thumbnail: str | None = None  # a data URL of a JPEG
    implementation_version: str | None = None  # the trainer and its version


def sd_scripts_metadata(
    info: TrainingInfo,
    *,
    steps: int,
    epoch: int,
    finished_at: float,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The metadata of one file of a run: `info` and how far the training was when it was written.

    `steps` and `epoch` count from 1 over all attempts, `finished_at` is in seconds since 1970. `extra` are further
    entries, such as those of the LoRA that this one continues: they stay where nothing here has the same name. The
    hashes of the tensors are save_lora's to write.
    """
    known = {f.name: getattr(info, f.name) for f in dataclasses.fields(info)}
    spec = {name: known.pop(name) for name in _MODELSPEC_FIELDS}
    spec["title"] = spec["title"] or info.output_name
    flux_type, names = known.pop("flux_type"), known.pop("lora_format")
    klein = known.pop("family") == "flux2-klein"
    known |= {
        "base_model_version": "flux2" if klein else "flux1",
        "v2": False,
        "steps": steps,
        "epoch": epoch,
        "training_finished_at": finished_at,
    }
    spec |= {
        "sai_model_spec": "1.0.1",
        "architecture": "flux-2-klein/lora" if klein else f"{_ARCHITECTURES.get(flux_type, 'flux-1')}/lora",
        "implementation": implementation(names, klein),
        "resolution": f"{info.resolution[0]}x{info.resolution[1]}",
        "date": datetime.fromtimestamp(int(finished_at), UTC).isoformat(),
    }
    named = {f"ss_{k}": v for k, v in known.items()} | {f"modelspec.{k}": v for k, v in spec.items()}
    return {**(extra or {}), **{key: _text(value) for key, value in named.items() if value is not None}}


def count_tags(captions: Iterable[str]) -> dict[str, int]:
    """How often each tag stands in the captions, as sd-scripts counts for `ss_tag_frequency`.

    Commas part the tags, upper case does not count; a sentence without commas is one tag.
    """
    tags = (tag.strip().lower() for caption in captions for tag in caption.split(","))
    return dict(Counter(tag for tag in tags if tag))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)
