"""`docs/training.md` from the schema.

python -m fluxcore.config.page > docs/training.md
"""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from .advice import ADVICE
from .schema import GROUPS, RunConfig

HEAD = """# Training: every setting

As in the form, in `--set name=value`, in `--config` files and in `ui_state.json`. Names are sd-scripts' where it has
one. Some base models bring defaults of their own (`fluxcore/models/registry.toml`), as does the memory preset; both are
below what you set. This page is written by `python -m fluxcore.config.page`; a test compares it with the schema.

## How a step goes

Pictures and captions are encoded before the first step and kept in the run's `.cache`, each under a name that is a hash
of all that it depends on: the picture's bytes, its size and flip, the caption, the model. A later attempt loads no text
encoder; an edited caption or picture is encoded anew, and a damaged file as well. A step takes
`gradient_accumulation_steps` batches of `train_batch_size` pictures of one size. Which pictures, their noise and noise
level, flip, order of tags, dropped caption and dropout are functions of (seed, step, sample), so a resumed training
ends bit for bit like one that was never stopped (on a CPU; on a GPU as far as its kernels are deterministic).

## Several folders, regularisation pictures

`dataset_config` is sd-scripts' file, its path or the text itself. `[general]`, `[[datasets]]` and
`[[datasets.subsets]]` may each have any of the settings of the group Dataset, and `batch_size`; the nearest one counts,
and the run's own where none is given. A subset has `image_dir`, and may have `class_tokens` (the caption of pictures
that have none), `caption_extension` and `is_reg`. Regularisation pictures are repeated until there are as many of them
as of the others; their loss counts `prior_loss_weight`.

    [[datasets]]
    resolution = 512
    enable_bucket = true
    [[datasets.subsets]]
    image_dir = "cat"
    num_repeats = 10
    [[datasets.subsets]]
    image_dir = "other-cats"
    is_reg = true
    class_tokens = "cat"
    [[datasets]]
    resolution = 768
    [[datasets.subsets]]
    image_dir = "cat"

## Which checkpoint is the best

With `validation_split` some pictures are never trained. Their loss is measured with noise that never changes, at four
noise levels each, of the weights that a save would write: `validation.measured` has it with the lowest so far, each
`checkpoint.saved` its own. Where it rises while the training's loss falls, the LoRA learns its pictures by heart. The
run's page draws it with the loss, marks the best LoRA file with a star and offers it for download; `validation` has it
in SQL.

## Samples or a checkpoint now

While a run trains, its page's Sample now and Save now (or `./fluxgym sample NAME`, `./fluxgym save NAME`) have the
prompts drawn, or the LoRA and a state written, after the present step. Neither changes what is trained.
`./fluxgym samples NAME FILE.png`, or *As one picture* beside a run's samples, puts all of them into one: a row for each
prompt, a column for each of at most twelve steps.

## When something does not fit

A step that runs out of GPU memory is tried once more with halved batches and gradient checkpointing, and the attempt
goes on so (`memory.short`); if that does not fit either, the run fails with what to change. Captions and pictures whose
encoder finds no room on the GPU are encoded on the CPU; a validation is measured in smaller parts; a sample or a
validation that can't be made is left out and said so. Where the base model or the optimizer's moments don't fit, which
nothing can go on without, the failure names the settings to change. A loss or gradient that is
no number ends the attempt before it touches the weights: resume from the last checkpoint with a lower learning rate.

## Several GPUs

A run that names several GPUs (`gpu_ids=0,1`) trains on all of them, one process each. Each takes batches of its own, so
a step has `train_batch_size` × `gradient_accumulation_steps` × GPUs pictures and an epoch accordingly fewer steps;
`max_train_steps` counts steps, whatever they hold. What comes out is what one process with so many times the
accumulation trains: within 1e-5, on a CPU with two processes to the bit. So a run may be resumed with other GPUs: with
as many batches a step (accumulation × GPUs) it goes on exactly, with others it goes on too, and `dataset.changed` and
the log say what would be exact.

Captions and pictures are encoded by the first process while the others wait. Only it writes events, files and samples.
A stop stops all after the same step; where a process dies, all end, and `run.failed` has the cause that the first to
fail gave. `torchrun --nproc-per-node 2 -m -- fluxcore.training …` starts them as well (without the `--` it takes
`--run` for one of its own options).

Each GPU holds the whole base model, and the host's memory one copy for each GPU while it loads. Where one GPU can't
hold it, `shard_base` splits the transformer over them (FSDP2, the LoRA stays whole); it excludes a base that is held in
less and swapped blocks, and a step that does not fit is not tried again in smaller parts.

Tested with two processes on a CPU (gloo), split base included. With NCCL on real GPUs none of this has been run yet.

## Compiled blocks

With `compile` the transformer's blocks go through torch.compile, one of each kind (and the first of each) for all of
them. The first such step takes up to a minute, and so does the first one of another batch size; pictures of other sizes
cost it once. `auto` times eight steps and then compiles where what is left saves twice that minute; `compile.started`
says when. Samples and validation run uncompiled. Where there is no compiler (gcc on a CPU, Triton on a GPU) the
training goes on without, and `compile.failed` says why. A compiled training equals the other up to rounding, but with
`network_dropout` it drops others; resumed with `on` it is compiled from its first step again. With `auto` a resumed
attempt times its own steps first, so it ends equal within rounding, not to the bit. On a GPU this has not been run yet.

## Resuming into other settings, and from sd-scripts

Epochs, steps, learning rate, schedule, seed, pictures and samples may change between attempts: the training goes on
with the new ones; other pictures, another base model and another run's checkpoint are told. Another optimizer begins
without memory of the steps before. Another rank, alpha, network or choice of layers is refused, before anything is
set aside: the weights would not be those that were saved. A mean of the losses is not kept in a state: the log has
each step's. A state has sd-scripts' names and order wherever their network has a place for the LoRA, and theirs are
resumed here; [sd-scripts](sd-scripts.md) says what is exact. What is not taken over as it was is said in
`resume.adapted`, on the run's page and by `status NAME`.

## What the files are

| network | file | opens in |
| --- | --- | --- |
| LoRA, rsLoRA | sd-scripts' keys, or those of `lora_format`; rsLoRA's scale is in `alpha` | all |
| DoRA | diffusers' keys, with `dora_scale` for ComfyUI | diffusers; ComfyUI by its rules, not tried there |
| LoKr, LoHa | LyCORIS' keys on diffusers' layers, as SimpleTuner's | ComfyUI by its rules, not tried there |

`./fluxgym convert IN OUT --to sd-scripts`, `diffusers`, `peft` or `comfyui` gives a LoRA any of these names, exactly,
and back again. diffusers' names are for its pipelines' `load_lora_weights`, peft's for a transformer's
`load_lora_adapter(FILE, prefix=None)` and for peft itself, whose configuration is in the file's metadata
(`lora_adapter_metadata`). Those take no `.alpha` tensor: the scale, alpha / rank, is in the weights there, in 32 bit
where 16 don't hold it. On the way back it is taken out again, exactly, but for the last bit of weights in 32 bit where
alpha / rank is no power of two. What a PeftModel saved is read with the adapter_config.json beside it.

The file's metadata have sd-scripts' `ss_…` keys and ModelSpec's: trigger word, tags and how often each stands in the
captions, the base model's licence, hashes of the weights, and the newest sample of the first prompt as a thumbnail
(drawn before the file was written, so not without `sample_every_n_steps`).

A LoRA of FLUX.2 klein has the same forms; `convert` tells the two apart by names and shapes. sd-scripts' form is here
that of kohya's musubi-tuner, since sd-scripts train no FLUX.2; ComfyUI (by its rules, not tried there) and diffusers'
klein pipeline (tried) read it. diffusers takes no `.alpha` for FLUX.2, so under its names the scale is in the weights
too, in a file of the trainer rounded once to `save_precision` where alpha / rank is no power of two. ComfyUI's form is
not read by diffusers. A DoRA and a LoKr of klein open in that pipeline as well, a LoHa does not. Klein has been trained
on tiny random models only ([models](models.md)).
"""


def markdown() -> str:
    """`docs/training.md`."""
    lines = [HEAD.rstrip()]
    for group, title in GROUPS.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| setting | default | unit | what | change it |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, field in RunConfig.model_fields.items():
            extra: Any = field.json_schema_extra
            if extra["group"] != group:
                continue
            unit, when = ADVICE[name]
            cells = [f"`{name}`", _default(field.default), unit, f"{field.description}{_choices(field)}", when]
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    if value == "":
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _choices(field: Any) -> str:
    if get_origin(field.annotation) is not Literal:
        return ""
    return f" One of {', '.join(f'`{choice}`' for choice in get_args(field.annotation))}."


if __name__ == "__main__":
    print(markdown(), end="")
