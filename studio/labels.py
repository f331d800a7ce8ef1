"""What a person reads for a setting: its label, what its help adds to the schema's, and what an empty field shows."""

from __future__ import annotations

LABELS = {
    "lora_name": "Name",
    "concept_sentence": "Trigger word",
    "base_model": "Base model",
    "vram": "GPU memory",
    "num_repeats": "Repeats per picture",
    "max_train_epochs": "Epochs",
    "max_train_steps": "Steps (instead of epochs)",
    "network_dim": "LoRA rank",
    "network_alpha": "LoRA alpha",
    "network_dropout": "LoRA dropout",
    "network_algo": "Kind of network",
    "use_rslora": "rsLoRA",
    "use_dora": "DoRA",
    "lokr_factor": "LoKr factor",
    "train_blocks": "Blocks",
    "train_double_block_indices": "Double blocks by number",
    "train_single_block_indices": "Single blocks by number",
    "train_layers": "Layers of a block",
    "ema_decay": "EMA decay",
    "validate_every_n_steps": "Measure held-out loss every N steps",
    "network_weights": "Continue from a LoRA file",
    "train_batch_size": "Batch size",
    "lr_scheduler": "Learning rate schedule",
    "lr_warmup_steps": "Warm-up steps",
    "max_grad_norm": "Gradient clipping",
    "optimizer_type": "Optimizer",
    "optimizer_args": "Arguments of the optimizer",
    "lr_scheduler_num_cycles": "Restarts of the schedule",
    "lr_scheduler_power": "Power of the polynomial schedule",
    "weighting_scheme": "Weighting of noise levels",
    "loss_type": "Loss",
    "huber_c": "Huber threshold",
    "logit_mean": "Middle of logit_normal",
    "logit_std": "Spread of logit_normal",
    "mode_scale": "Strength of mode",
    "caption_dropout_rate": "Caption dropout",
    "extra_resolutions": "Further resolutions",
    "enable_bucket": "Keep aspect ratios (buckets)",
    "min_bucket_reso": "Shortest side of a bucket",
    "max_bucket_reso": "Longest side of a bucket",
    "bucket_reso_steps": "Bucket sides are multiples of",
    "bucket_no_upscale": "Never enlarge pictures",
    "flip_aug": "Mirror pictures at random",
    "shuffle_caption": "Shuffle tags",
    "keep_tokens": "Tags kept in front",
    "shuffle_caption_forms": "Orders of tags per caption",
    "prior_loss_weight": "Weight of regularisation pictures",
    "dataset_config": "Dataset file of sd-scripts (TOML)",
    "validation_split": "Share of pictures held out",
    "gradient_accumulation_steps": "Batches per step (accumulation)",
    "discrete_flow_shift": "Timestep shift",
    "sample_prompts": "Sample prompts, one a line",
    "sample_at_first": "Draw samples before the first step too",
    "sample_every_n_steps": "Draw samples every N steps",
    "save_every_n_epochs": "Save every N epochs",
    "save_every_n_steps": "Save every N steps",
    "save_last_n_epochs_state": "Keep states of the last N epochs",
    "save_last_n_steps_state": "Keep states of the last N steps",
    "enable_checkpointing": "Keep checkpoints",
    "enable_monitoring": "Monitoring",
    "auto_resume": "Automatic resumes",
    "stall_seconds": "Stuck after (seconds)",
    "sample_gpu_seconds": "Look at the GPU every (seconds)",
    "stop_grace_seconds": "Time to save when stopped (seconds)",
    "alerts": "Alerts",
    "workers": "Reader threads",
    "gpu_ids": "GPUs (empty: any one)",
    "num_processes": "Processes (0: one a GPU)",
    "shard_base": "Base model split over the GPUs",
    "compile": "Compile the blocks",
    "gradient_checkpointing": "Gradient checkpointing",
    "fp8_base": "Base model in 8-bit floats",
    "gradient_checkpointing_interval": "Gradient checkpointing of every so-many-th block",
    "quantize_base": "Base model quantised",
    "blocks_to_swap": "Blocks kept in the host's memory",
    "encode_on_cpu": "Encode captions on the CPU",
    "mixed_precision": "Precision of the base model",
    "save_precision": "Precision of the saved LoRA",
    "lora_format": "Key names in the saved LoRA",
    "pretrained_model_name_or_path": "Transformer file",
    "ae": "Autoencoder file",
    "clip_l": "CLIP-L file",
    "t5xxl": "T5 file",
    "qwen3": "Qwen3 file",
    "tokenizer_cache_dir": "Tokenizers folder",
}
HELP = {"base_model": " flux-mini comes with FluxGym: it draws 64-pixel emoji and trains on a CPU in a minute."}
PLACEHOLDERS = {
    "lora_name": "my-cat",
    "concept_sentence": "a rare word, such as p3rs0n",
    "dataset_config": '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "cats"\nnum_repeats = 10',
    "sample_prompts": "p3rs0n on a beach --w 512 --h 512 --s 20 --g 3.5 --d 42",
}


def label_of(name: str) -> str:
    """What a person reads for a field."""
    return LABELS.get(name, name.replace("_", " ").capitalize())


SHORT_STALL = 30
"""Seconds: what is shorter is told."""


def caution(name: str, value: object, monitored: object) -> str:
    """What is to be thought of where a field has this value; "" where nothing is."""
    if name == "stall_seconds" and monitored and isinstance(value, int | float) and value < SHORT_STALL:
        return "So short, a slow step or the saving of a checkpoint may be taken for a stall."
    return ""
