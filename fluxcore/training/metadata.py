"""What a LoRA file says of the training that made it."""

from __future__ import annotations

from pathlib import Path

from fluxcore.config import RunConfig
from fluxcore.dataset import Picture
from fluxcore.models.registry import BaseModel

from .lora_metadata import TrainingInfo, count_tags


def training_info(
    config: RunConfig, model: BaseModel, pictures: list[Picture], total_steps: int, started: float
) -> TrainingInfo:
    """The facts of a run for its files' metadata; `started` in seconds since 1970."""
    prompts = [picture.prompt(config.concept_sentence) for picture in pictures]
    images = len(pictures) * config.num_repeats
    return TrainingInfo(
        output_name=config.lora_name,
        network_dim=config.network_dim,
        network_alpha=config.network_alpha,
        learning_rate=config.rate,
        num_train_images=images,
        num_epochs=-(-total_steps // config.steps_per_epoch(len(pictures))),
        max_train_steps=total_steps,
        seed=config.seed,
        resolution=(config.resolution, config.resolution),
        flux_type=next((kind for kind in ("dev", "schnell") if kind in model.name), model.name.removeprefix("flux-")),
        training_started_at=started,
        num_batches_per_epoch=config.steps_per_epoch(len(pictures)),
        batch_size_per_device=config.train_batch_size,
        total_batch_size=config.train_batch_size,
        gradient_accumulation_steps=1,
        gradient_checkpointing=config.gradient_checkpointing,
        optimizer=config.optimizer_type,
        lr_scheduler=config.lr_scheduler,
        lr_warmup_steps=config.lr_warmup_steps,
        max_grad_norm=config.max_grad_norm,
        mixed_precision=config.mixed_precision,
        cache_latents=True,
        loss_type="l2",
        timestep_sampling=config.timestep_sampling,
        sigmoid_scale=config.sigmoid_scale,
        discrete_flow_shift=config.discrete_flow_shift,
        model_prediction_type="raw",
        guidance_scale=config.guidance_scale,
        sd_model_name=Path(config.pretrained_model_name_or_path).name or model.repo or model.name,
        tag_frequency={"dataset": count_tags(prompts)},
        dataset_dirs={"dataset": {"n_repeats": config.num_repeats, "img_count": len(pictures)}},
        license=model.licence,
        trigger_phrase=config.concept_sentence or None,
        implementation_version="FluxGym",
    )
