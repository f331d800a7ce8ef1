"""What a LoRA file says of the training that made it."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

from PIL import Image

from fluxcore.config import RunConfig
from fluxcore.dataset.layout import Example, Layout
from fluxcore.models.registry import BaseModel

from .lora_metadata import TrainingInfo, count_tags


def training_info(
    config: RunConfig, model: BaseModel, layout: Layout, started: float, thumbnail: str | None = None
) -> TrainingInfo:
    """The facts of a run for its files' metadata; `started` in seconds since 1970, `thumbnail` from thumbnail_of."""
    # Each folder once, whatever sizes it is trained at.
    first = {(one.subset.image_dir.name, one.picture.path): one for one in reversed(layout.examples)}
    folders: dict[str, list[Example]] = {}
    for (name, _), one in sorted(first.items()):
        folders.setdefault(name, []).append(one)
    regular = sum(one.repeats for one in layout.examples if one.subset.is_reg)
    return TrainingInfo(
        output_name=config.lora_name,
        network_dim=config.network_dim,
        network_alpha=config.network_alpha,
        learning_rate=config.rate,
        num_train_images=len(layout.items) - regular,
        num_reg_images=regular,
        num_epochs=layout.last_epoch,
        max_train_steps=layout.total_steps,
        seed=config.seed,
        resolution=(config.resolution, config.resolution),
        flux_type=next((kind for kind in ("dev", "schnell") if kind in model.name), model.name.removeprefix("flux-")),
        training_started_at=started,
        num_batches_per_epoch=layout.steps_per_epoch * config.batches_per_step,
        batch_size_per_device=config.train_batch_size,
        total_batch_size=config.train_batch_size * config.batches_per_step,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        gradient_checkpointing=config.gradient_checkpointing,
        optimizer=f"{config.optimizer_type}({config.optimizer_args})"
        if config.optimizer_args
        else config.optimizer_type,
        lr_scheduler=config.lr_scheduler,
        lr_warmup_steps=config.lr_warmup_steps,
        max_grad_norm=config.max_grad_norm,
        mixed_precision=config.mixed_precision,
        cache_latents=True,
        loss_type=config.loss_type,
        timestep_sampling=config.timestep_sampling,
        sigmoid_scale=config.sigmoid_scale,
        discrete_flow_shift=config.discrete_flow_shift,
        model_prediction_type="raw",
        guidance_scale=config.guidance_scale,
        sd_model_name=base_name(config, model),
        sd_model_hash=model_hash(Path(config.pretrained_model_name_or_path)),
        tag_frequency={name: count_tags(one.caption for one in found) for name, found in folders.items()},
        dataset_dirs={
            name: {"n_repeats": found[0].repeats, "img_count": len(found)} for name, found in folders.items()
        },
        bucket_info=_buckets(layout),
        network_module=_network_module(config, model),
        network_args=_network_args(config),
        lora_format=config.lora_format,
        family=model.family,
        license=model.licence,
        thumbnail=thumbnail,
        trigger_phrase=config.concept_sentence or None,
        implementation_version="FluxGym",
    )


def base_name(config: RunConfig, model: BaseModel) -> str:
    """What files call the base model: a person's own file, the repository, or the list's name."""
    return Path(config.pretrained_model_name_or_path).name or model.repo or model.name


def model_hash(file: Path) -> str | None:
    """What sd-scripts write as `ss_sd_model_hash`: Web UI's short hash of a model's file, of 64 KiB at 1 MiB.

    None of what is no readable file. The whole file's hash (`ss_new_sd_model_hash`) would mean reading 24 GB.
    """
    try:
        with file.open("rb") as opened:
            opened.seek(1 << 20)
            return hashlib.sha256(opened.read(1 << 16)).hexdigest()[:8]
    except OSError:
        return None


def thumbnail_of(picture: Image.Image) -> str:
    """A small JPEG of a sample as ModelSpec's `thumbnail` wants it: a data URL, some 10 KB at 256 pixels."""
    small, written = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((256, 256))
    small.save(written, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"


def _buckets(layout: Layout) -> dict[str, object] | None:
    """Sizes and how many pictures an epoch sees at each, as sd-scripts writes it; None without buckets."""
    if not any(one.subset.enable_bucket for one in layout.examples):
        return None
    counts: dict[tuple[int, int], int] = {}
    for one in layout.examples:
        counts[one.size] = counts.get(one.size, 0) + one.repeats
    sizes = sorted(counts.items())
    return {"buckets": {str(i): {"resolution": list(size), "count": count} for i, (size, count) in enumerate(sizes)}}


def _network_module(config: RunConfig, model: BaseModel) -> str:
    """Whose file it is."""
    if config.network_algo != "lora":
        return "lycoris.kohya"
    return "networks.lora_flux" if model.family == "flux" else "networks.lora_flux_2"  # kohya's musubi-tuner


def _network_args(config: RunConfig) -> dict[str, object] | None:
    """What differs from a plain LoRA on every layer of the blocks; None where nothing does."""
    names = ("train_blocks", "train_double_block_indices", "train_single_block_indices", "train_layers")
    found: dict[str, object] = {name: getattr(config, name) for name in names if getattr(config, name) != "all"}
    if config.network_algo != "lora":
        found |= {"algo": config.network_algo}
    found |= {name: True for name in ("use_rslora", "use_dora") if getattr(config, name)}
    return found or None
