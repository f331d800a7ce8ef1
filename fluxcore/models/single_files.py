"""FLUX.1 from single files: each part built from its own file, every tensor accounted for. Needs torch.

The names are turned around by diffusers' own converters; what they leave, lack or shape otherwise is an error here.
Sizes that differ between models of the family are read from the file's header, those that make it FLUX.1 are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from .weights import PartFile, Shapes

TRANSFORMER, AE, CLIP_L, T5XXL = "pretrained_model_name_or_path", "ae", "clip_l", "t5xxl"
WIDTH, HEAD, LATENT_CHANNELS = 3072, 128, 16
CLIP_WIDTH, CLIP_TOKENS, T5_WIDTH = 768, 77, 4096
VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": LATENT_CHANNELS,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}
"""As in the `vae/config.json` of black-forest-labs/FLUX.1-dev."""
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
}
"""As in the `scheduler/scheduler_config.json` of FLUX.1-dev and of FLUX.1-schnell, which shifts nothing."""
# What other programs keep beside CLIP's text encoder; FLUX uses none of it.
_CLIP_EXTRAS = ("embeddings.position_ids", "text_projection.weight", "logit_scale")


def load_transformer(path: Path, dtype: torch.dtype) -> FluxTransformer2DModel:
    """The transformer from a file with BFL's names, in `dtype`. Raises ModelError."""
    file = PartFile(path, TRANSFORMER)
    shapes = file.shapes
    width, channels = shape_of(file, shapes, "img_in.weight", 2)
    if width != WIDTH:
        file.check(shaped=f"it is {width} wide, FLUX.1 {WIDTH}")
    if channels != 4 * LATENT_CHANNELS:
        file.check(shaped=f"it takes {channels} channels instead of {4 * LATENT_CHANNELS} (a fill or control model)")
    with init_empty_weights():
        transformer = FluxTransformer2DModel(
            in_channels=channels,
            num_layers=count_blocks(shapes, r"double_blocks\.(\d+)\."),
            num_single_layers=count_blocks(shapes, r"single_blocks\.(\d+)\."),
            attention_head_dim=HEAD,
            num_attention_heads=width // HEAD,
            joint_attention_dim=shape_of(file, shapes, "txt_in.weight", 2)[1],
            pooled_projection_dim=shape_of(file, shapes, "vector_in.in_layer.weight", 2)[1],
            guidance_embeds="guidance_in.in_layer.weight" in shapes,
        )
    # First without the values, so that a wrong file is told at once.
    named = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    converted = _converted(file, named)
    file.compare(shapes_of(transformer.state_dict()), shapes_of(converted), left_over=named)
    return fill(transformer, _converted(file, file.read(dtype)))


def load_vae(path: Path) -> AutoencoderKL:
    """The autoencoder from a file with BFL's names, in 32 bit. Raises ModelError."""
    file = PartFile(path, AE)
    with init_empty_weights():
        vae = AutoencoderKL(**VAE_CONFIG)
    try:
        origins = convert_ldm_vae_checkpoint({name: NameOnly(name) for name in file.shapes}, vae.config)
    except (KeyError, AttributeError):
        origins = {}
    if not origins:
        file.check(missing=["decoder.conv_in.weight"])
    left_over = set(file.shapes) - set(origins.values())
    wanted = shapes_of(vae.state_dict())
    file.check(set(wanted) - set(origins), [*left_over, *(set(origins) - set(wanted))])
    tensors = convert_ldm_vae_checkpoint(file.read(torch.float32), vae.config)
    file.compare(wanted, shapes_of(tensors))
    return fill(vae, tensors)


def load_clip(path: Path, dtype: torch.dtype) -> CLIPTextModel:
    """CLIP-L's text encoder, in `dtype`. Raises ModelError."""
    file = PartFile(path, CLIP_L)
    names = {name: name.removeprefix("text_model.") for name in file.shapes}
    shapes = {names[name]: shape for name, shape in file.shapes.items() if names[name] not in _CLIP_EXTRAS}
    words, width = shape_of(file, shapes, "embeddings.token_embedding.weight", 2)
    if width != CLIP_WIDTH:
        file.check(shaped=f"it is {width} wide, CLIP-L {CLIP_WIDTH}")
    with init_empty_weights():
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=words,
                hidden_size=width,
                intermediate_size=4 * width,
                num_attention_heads=width // 64,
                num_hidden_layers=count_blocks(shapes, r"encoder\.layers\.(\d+)\."),
                max_position_embeddings=shape_of(file, shapes, "embeddings.position_embedding.weight", 2)[0],
                projection_dim=width,
                eos_token_id=2,  # as in FLUX.1's own config: the pooled output is then that of the highest token
            )
        )
    prefix = "text_model." if any(name.startswith("text_model.") for name in clip.state_dict()) else ""
    file.compare({name.removeprefix(prefix): s for name, s in shapes_of(clip.state_dict()).items()}, shapes)
    tensors = file.read(dtype)
    return fill(clip, {prefix + new: tensors[old] for old, new in names.items() if new in shapes})


def load_t5(path: Path, dtype: torch.dtype) -> T5EncoderModel:
    """T5-XXL's encoder, in `dtype` (in fp16 with those layers in 32 bit that overflow in it). Raises ModelError."""
    file = PartFile(path, T5XXL)
    shapes = dict(file.shapes)
    twice = {"shared.weight", "encoder.embed_tokens.weight"}  # one tensor, by either name or both
    embedding = next((name for name in sorted(twice, reverse=True) if name in shapes), "shared.weight")
    words, width = shape_of(file, shapes, embedding, 2)
    if width != T5_WIDTH:
        file.check(shaped=f"it is {width} wide, T5-XXL {T5_WIDTH}")
    first = "encoder.block.0.layer."
    with init_empty_weights():
        t5 = T5EncoderModel(
            T5Config(
                vocab_size=words,
                d_model=width,
                d_kv=64,
                num_heads=shape_of(file, shapes, f"{first}0.SelfAttention.q.weight", 2)[0] // 64,
                d_ff=shape_of(file, shapes, f"{first}1.DenseReluDense.wi_0.weight", 2)[0],
                num_layers=count_blocks(shapes, r"encoder\.block\.(\d+)\."),
                feed_forward_proj="gated-gelu",
                is_encoder_decoder=False,
                use_cache=False,
                tie_word_embeddings=False,
            )
        )
    wanted = shapes_of(t5.state_dict())
    file.compare(
        {name: shape for name, shape in wanted.items() if name not in twice},
        {name: shape for name, shape in shapes.items() if name not in twice},
    )
    tensors = file.read(dtype)
    shared = tensors[embedding]
    tensors |= {name: shared for name in twice if name in wanted}
    tensors = {name: value for name, value in tensors.items() if name in wanted}
    fill(t5, tensors)
    t5.set_input_embeddings(t5.get_input_embeddings())  # one parameter again, where loading made two of it
    if dtype == torch.float16:
        for name, module in t5.named_modules():
            if name.endswith(".wo"):
                module.float()
    return t5


def scheduler_for(transformer_path: Path) -> FlowMatchEulerDiscreteScheduler:
    """The sampler that belongs to a transformer's file: schnell's, which has no guidance embedding, shifts nothing."""
    dev = "guidance_in.in_layer.weight" in PartFile(transformer_path, TRANSFORMER).shapes
    return FlowMatchEulerDiscreteScheduler(**SCHEDULER, shift=3.0 if dev else 1.0, use_dynamic_shifting=dev)


class NameOnly(str):
    """Stands for a tensor where diffusers' converter only renames: what comes out tells where each came from."""

    shape: tuple[int, ...] = ()
    ndim = 0


def _converted(file: PartFile, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` under diffusers' names; taken out of the argument, which keeps what was left over."""
    try:
        return convert_flux_transformer_checkpoint_to_diffusers(tensors)
    except KeyError as error:
        file.check(missing=[str(error.args[0])])
    except (IndexError, RuntimeError, ValueError) as error:
        file.check(shaped=f"its tensors have other shapes ({str(error).splitlines()[0]})")
    raise AssertionError("check raises")


def fill(model: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`model` with these tensors, frozen."""
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def shape_of(file: PartFile, shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there. Raises ModelError."""
    if name not in shapes:
        file.check(missing=[name])
    if len(shapes[name]) != dimensions:
        file.check(shaped=f"its {name} has {len(shapes[name])} dimensions instead of {dimensions}")
    return shapes[name]


def count_blocks(names: Iterable[str], pattern: str) -> int:
    """How many blocks there are by their numbers; a number left out shows as tensors that are missing."""
    numbers = [int(found[1]) for name in names if (found := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def shapes_of(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Name → shape."""
    return {name: tuple(value.shape) for name, value in tensors.items()}
