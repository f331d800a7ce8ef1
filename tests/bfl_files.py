"""FLUX.1's parts as single files for tests: BFL's names for modules of diffusers', and files with a header alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from fluxcore.models.single_files import VAE_CONFIG

WIDTH = 3072
Shape = tuple[int, ...]
BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I8": 1}

_OUTER = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
}
_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_DOUBLE_NORMS = {"img_attn.norm.query": "norm_q", "img_attn.norm.key": "norm_k"}
_DOUBLE_NORMS |= {"txt_attn.norm.query": "norm_added_q", "txt_attn.norm.key": "norm_added_k"}
_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
_SINGLE_NORMS = {"norm.query": "norm_q", "norm.key": "norm_k"}


def header_only(
    path: Path, shapes: dict[str, Shape], dtype: str = "BF16", metadata: dict[str, str] | None = None
) -> Path:
    """A whole safetensors file of these tensors, all zeros, that takes no room on the disk."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        size = BYTES[dtype] * int(torch.Size(shape).numel())
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def values(shapes: dict[str, Shape], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors whose values differ within and between them, made fast."""
    block = torch.randn(200_003, generator=torch.Generator().manual_seed(1)).mul_(0.05).to(dtype)
    made = {}
    for index, (name, shape) in enumerate(shapes.items()):
        start, size = block[index * 37 : index * 37 + 100_003], torch.Size(shape).numel()
        made[name] = start.repeat(-(-size // len(start)))[:size].reshape(shape)
    return made


def filled(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A model from `init_empty_weights` with such values."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(values(shapes, dtype), assign=True)
    return model.eval().requires_grad_(False)


def transformer(
    doubles: int = 1, singles: int = 1, *, guidance: bool = True, channels: int = 64
) -> FluxTransformer2DModel:
    """Of FLUX.1's width, without values."""
    with init_empty_weights():
        return FluxTransformer2DModel(
            in_channels=channels, num_layers=doubles, num_single_layers=singles, guidance_embeds=guidance
        )


def bfl_transformer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A transformer's tensors under BFL's names."""
    given, named = dict(tensors), {}
    swapped = [given.pop(f"norm_out.linear.{kind}").chunk(2) for kind in ("weight", "bias")]
    for kind, (scale, shift) in zip(("weight", "bias"), swapped, strict=True):
        named[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    for theirs, ours in _OUTER.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in given:
                named[f"{ours}.{kind}"] = given.pop(f"{theirs}.{kind}")
    for stem, bfl, layers, norms in (
        ("transformer_blocks", "double_blocks", _DOUBLE, _DOUBLE_NORMS),
        ("single_transformer_blocks", "single_blocks", _SINGLE, _SINGLE_NORMS),
    ):
        for i in range(100):
            if not any(name.startswith(f"{stem}.{i}.") for name in given):
                break
            for ours, parts in layers.items():
                for kind in ("weight", "bias"):
                    named[f"{bfl}.{i}.{ours}.{kind}"] = torch.cat([given.pop(f"{stem}.{i}.{p}.{kind}") for p in parts])
            for ours, theirs in norms.items():
                named[f"{bfl}.{i}.{ours}_norm.scale"] = given.pop(f"{stem}.{i}.attn.{theirs}.weight")
    assert not given, list(given)
    return named


def diffusers_transformer(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `bfl_transformer` undoes: views of the tensors where it can be."""
    given, tensors = dict(named), {}
    for kind in ("weight", "bias"):
        shift, scale = given.pop(f"final_layer.adaLN_modulation.1.{kind}").chunk(2)
        tensors[f"norm_out.linear.{kind}"] = torch.cat([scale, shift])
    outer = {ours: theirs for theirs, ours in _OUTER.items()}
    for name, value in given.items():
        stem, _, kind = name.rpartition(".")
        if stem in outer:
            tensors[f"{outer[stem]}.{kind}"] = value
            continue
        bfl, number, layer = stem.split(".", 2)
        layers, norms = (_DOUBLE, _DOUBLE_NORMS) if bfl == "double_blocks" else (_SINGLE, _SINGLE_NORMS)
        block = f"{'' if bfl == 'double_blocks' else 'single_'}transformer_blocks.{number}"
        if kind == "scale":
            tensors[f"{block}.attn.{norms[layer.removesuffix('_norm')]}.weight"] = value
            continue
        parts = layers[layer]
        sizes = [WIDTH] * 3 + [4 * WIDTH] if len(parts) == 4 else [len(value) // len(parts)] * len(parts)
        tensors |= {f"{block}.{p}.{kind}": v for p, v in zip(parts, value.split(sizes), strict=True)}
    return tensors


def bfl_shapes(doubles: int = 1, singles: int = 1, **options: object) -> dict[str, Shape]:
    """The names and shapes in a transformer's file."""
    meta = transformer(doubles, singles, **options).state_dict()  # type: ignore[arg-type]
    return {name: tuple(value.shape) for name, value in bfl_transformer(meta).items()}


def autoencoder(**changes: object) -> AutoencoderKL:
    """FLUX.1's, without values."""
    with init_empty_weights():
        return AutoencoderKL(**VAE_CONFIG | changes)


def bfl_autoencoder(tensors: dict[str, Tensor], levels: int = 4) -> dict[str, Tensor]:
    """An autoencoder's tensors under BFL's names."""
    named = {}
    for name, value in tensors.items():
        side, _, rest = name.partition(".")
        new = rest.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = new.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
        if "attn_1" in new:
            for theirs, ours in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
                new = new.replace(f".{theirs}.", f".{ours}.")
            if new.endswith("weight") and "norm" not in new:
                value = value[:, :, None, None]
        for i in range(2):
            new = new.replace(f"mid_block.resnets.{i}.", f"mid.block_{i + 1}.")
        for i in range(levels):
            for theirs, ours, level in (("down", "down", i), ("up", "up", levels - 1 - i)):
                new = new.replace(f"{theirs}_blocks.{i}.resnets.", f"{ours}.{level}.block.")
                new = new.replace(f"{theirs}_blocks.{i}.{theirs}samplers.0.", f"{ours}.{level}.{theirs}sample.")
        named[f"{side}.{new}"] = value
    return named


def clip(words: int) -> CLIPTextModel:
    """CLIP-L with one layer."""
    config = CLIPTextConfig(
        vocab_size=words, hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=1,
        projection_dim=768, eos_token_id=2,
    )  # fmt: skip
    with init_empty_weights():
        return CLIPTextModel(config)


def t5(words: int) -> T5EncoderModel:
    """T5-XXL with one layer and a narrow MLP."""
    config = T5Config(
        vocab_size=words, d_model=4096, d_kv=64, num_heads=64, d_ff=256, num_layers=1, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    with init_empty_weights():
        return T5EncoderModel(config)


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path
