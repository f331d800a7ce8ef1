"""A tiny FLUX.2 klein in the real layouts, with random weights: made in a second, opens in diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tests.bfl_files import bfl_autoencoder

WIDTH = 16
LAYERS = 28
"""Layers 9, 18 and 27 are read."""
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4,
    "mid_block_add_attention": False,
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"


def make_klein(folder: Path, distilled: bool = False) -> Path:
    """Write the model to `folder`; returns it."""
    torch.manual_seed(0)
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(32, 127))]
    vocabulary = {word: number for number, word in enumerate(words)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<|endoftext|>"))
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=raw, unk_token="<|endoftext|>", pad_token="<|endoftext|>", eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )  # fmt: skip
    text = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )  # fmt: skip
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * WIDTH, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(**VAE)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae, text_encoder=text,
        tokenizer=tokenizer, transformer=transformer, is_distilled=distilled,
    ).save_pretrained(folder)  # fmt: skip
    return folder


# Black Forest Labs' names (their `flux2/model.py`) of diffusers' modules; an independent copy of what diffusers converts.
_OUTER = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
}
_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_DOUBLE_NORMS = {"img_attn.norm.query": "norm_q", "img_attn.norm.key": "norm_k"}
_DOUBLE_NORMS |= {"txt_attn.norm.query": "norm_added_q", "txt_attn.norm.key": "norm_added_k"}
_SINGLE = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
_SINGLE_NORMS = {"norm.query": "norm_q", "norm.key": "norm_k"}


def bfl_klein(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A klein transformer's tensors under BFL's names."""
    given, named = dict(tensors), {}
    scale, shift = given.pop("norm_out.linear.weight").chunk(2)
    named["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    for theirs, ours in _OUTER.items():
        named[f"{ours}.weight"] = given.pop(f"{theirs}.weight")
    for stem, bfl, layers, norms in (
        ("transformer_blocks", "double_blocks", _DOUBLE, _DOUBLE_NORMS),
        ("single_transformer_blocks", "single_blocks", _SINGLE, _SINGLE_NORMS),
    ):
        for i in range(100):
            if not any(name.startswith(f"{stem}.{i}.") for name in given):
                break
            for ours, parts in layers.items():
                named[f"{bfl}.{i}.{ours}.weight"] = torch.cat(
                    [given.pop(f"{stem}.{i}.{part}.weight") for part in parts]
                )
            for ours, theirs in norms.items():
                named[f"{bfl}.{i}.{ours}_norm.scale"] = given.pop(f"{stem}.{i}.attn.{theirs}.weight")
    assert not given, list(given)
    return named


def bfl_vae(tensors: dict[str, Tensor], levels: int = 4) -> dict[str, Tensor]:
    """An autoencoder's tensors under BFL's names: the convolutions around the latents are the encoder's and decoder's."""
    around = {f"{side}.{name}.{kind}": tensors[f"{name}.{kind}"] for side, name in
              (("encoder", "quant_conv"), ("decoder", "post_quant_conv")) for kind in ("weight", "bias")}  # fmt: skip
    bn = {name: value for name, value in tensors.items() if name.startswith("bn.")}
    inner = {name: value for name, value in tensors.items() if name.startswith(("encoder.", "decoder."))}
    return bfl_autoencoder(inner, levels) | around | bn


def save_single_files(folder: Path, place: Path, levels: int = 2) -> dict[str, Path]:
    """The klein of the diffusers folder `folder` as ComfyUI's users have one, in `place`: part → file."""
    pipeline = Flux2KleinPipeline.from_pretrained(folder)
    text = {name: value for name, value in pipeline.text_encoder.state_dict().items() if name != "lm_head.weight"}
    files = {
        "pretrained_model_name_or_path": ("diffusion_models/flux-2-klein-base-4b", bfl_klein(pipeline.transformer.state_dict())),
        "ae": ("vae/flux2-vae", bfl_vae(pipeline.vae.state_dict(), levels)),
        "qwen3": ("text_encoders/qwen_3_4b", text),
    }  # fmt: skip
    made = {}
    for part, (name, tensors) in files.items():
        made[part] = place / f"{name}.safetensors"
        made[part].parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in tensors.items()}, made[part])
    return made
