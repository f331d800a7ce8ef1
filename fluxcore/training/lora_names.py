"""The names of a LoRA's modules: FLUX.1's and FLUX.2 klein's, as sd-scripts, ComfyUI and diffusers have them.

The names and the order of the projections are those of sd-scripts' network on Black Forest Labs' `flux/model.py` and of
diffusers' `FluxTransformer2DModel`; for klein those of kohya's musubi-tuner (`networks/lora_flux_2.py`) on their
`flux2/model.py` and of diffusers' `Flux2Transformer2DModel`. sd-scripts' `split_qkv` exists in memory only, its files
have the fused names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

Table = dict[str, tuple[str, ...]]
"""sd-scripts' module -> the diffusers modules whose outputs it concatenates, in this order."""

_ATTENTION: Table = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
}
_DOUBLE_BLOCK: Table = {
    **_ATTENTION,
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE_BLOCK: Table = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
_OUTSIDE_BLOCKS: Table = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in_in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in_out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_in_in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in_out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "vector_in_in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in_out_layer": ("time_text_embed.text_embedder.linear_2",),
    "final_layer_adaLN_modulation_1": ("norm_out.linear",),
    "final_layer_linear": ("proj_out",),
}
_CLIP_LAYER: Table = {
    "self_attn_q_proj": ("self_attn.q_proj",),
    "self_attn_k_proj": ("self_attn.k_proj",),
    "self_attn_v_proj": ("self_attn.v_proj",),
    "self_attn_out_proj": ("self_attn.out_proj",),
    "mlp_fc1": ("mlp.fc1",),
    "mlp_fc2": ("mlp.fc2",),
}
# Klein's single blocks are fused in both; its modulation is one for all blocks.
_KLEIN_DOUBLE_BLOCK: Table = {
    **_ATTENTION,
    "img_mlp_0": ("ff.linear_in",),
    "img_mlp_2": ("ff.linear_out",),
    "txt_mlp_0": ("ff_context.linear_in",),
    "txt_mlp_2": ("ff_context.linear_out",),
}
_KLEIN_SINGLE_BLOCK: Table = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
_KLEIN_OUTSIDE_BLOCKS: Table = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in_in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    "time_in_out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
    "double_stream_modulation_img_lin": ("double_stream_modulation_img.linear",),
    "double_stream_modulation_txt_lin": ("double_stream_modulation_txt.linear",),
    "single_stream_modulation_lin": ("single_stream_modulation.linear",),
    "final_layer_adaLN_modulation_1": ("norm_out.linear",),
    "final_layer_linear": ("proj_out",),
}
_DOUBLE, _SINGLE = "lora_unet_double_blocks_#_", "lora_unet_single_blocks_#_"
_CLIP = "lora_te1_text_model_encoder_layers_#_"
_DIFFUSERS_DOUBLE, _DIFFUSERS_SINGLE = "transformer.transformer_blocks.#.", "transformer.single_transformer_blocks.#."
# ComfyUI has the model's own names, with points where sd-scripts write underscores between modules.
_COMFYUI_PREFIXES = {
    _DOUBLE: "diffusion_model.double_blocks.#.",
    _SINGLE: "diffusion_model.single_blocks.#.",
    _CLIP: "text_encoders.clip_l.transformer.text_model.encoder.layers.#.",
    "lora_unet_": "diffusion_model.",
}
_COMFYUI_ENDS = (
    "attn_qkv", "attn_proj", "mlp_0", "mlp_2", "mod_lin", "modulation_lin", "modulation_img_lin", "modulation_txt_lin",
)  # fmt: skip


class Names:
    """One model's names. With the block numbers taken out a name is one of these few, whatever the model's depth.

    `tables`: (sd-scripts' prefix, diffusers' prefix, the table below them); `#` stands for the block's number.
    """

    def __init__(self, title: str, *tables: tuple[str, str, Table]) -> None:
        self.title = title
        self.from_sd_scripts = {
            sd + name: tuple(df + p for p in paths) for sd, df, table in tables for name, paths in table.items()
        }
        self.to_sd_scripts = {
            path: (name, i) for name, paths in self.from_sd_scripts.items() for i, path in enumerate(paths)
        }
        self.to_comfyui = {name: _comfyui_name(name) for name in self.from_sd_scripts}
        self.from_comfyui = {comfyui: name for name, comfyui in self.to_comfyui.items()}


def _comfyui_name(name: str) -> str:
    prefix = next(prefix for prefix in _COMFYUI_PREFIXES if name.startswith(prefix))
    rest = name.removeprefix(prefix)
    if rest.endswith(_COMFYUI_ENDS):
        rest = ".".join(rest.rsplit("_", 1))
    elif rest.startswith("self_attn_"):
        rest = rest.replace("self_attn_", "self_attn.")
    elif rest.startswith("mlp_"):
        rest = rest.replace("mlp_", "mlp.")
    elif rest.endswith("_layer"):  # time_in_in_layer and its like
        rest = rest.replace("_in_", "_in.", 1)
    elif rest.startswith("final_layer_"):
        rest = rest.replace("final_layer_", "final_layer.").replace("_1", ".1")
    return _COMFYUI_PREFIXES[prefix] + rest


FLUX_1 = Names(
    "FLUX.1",
    (_DOUBLE, _DIFFUSERS_DOUBLE, _DOUBLE_BLOCK),
    (_SINGLE, _DIFFUSERS_SINGLE, _SINGLE_BLOCK),
    ("lora_unet_", "transformer.", _OUTSIDE_BLOCKS),
    (_CLIP, "text_encoder.text_model.encoder.layers.#.", _CLIP_LAYER),
)
KLEIN = Names(
    "FLUX.2 klein",
    (_DOUBLE, _DIFFUSERS_DOUBLE, _KLEIN_DOUBLE_BLOCK),
    (_SINGLE, _DIFFUSERS_SINGLE, _KLEIN_SINGLE_BLOCK),
    ("lora_unet_", "transformer.", _KLEIN_OUTSIDE_BLOCKS),
)

_KLEIN_ONLY = re.compile(
    r"stream_modulation|time_guidance_embed|to_qkv_mlp_proj|ff(_context)?\.linear_(in|out)"
    r"|single_transformer_blocks\.\d+\.attn\.to_out"
)
# Where both models have a module of that name its sides tell: in and out features, in parts of the smaller one.
_KLEIN_SIDES = {"linear1": (1, 9), "linear2": (4, 1), "mlp_0": (1, 6), "mlp_2": (3, 1)}
_MATRIX = re.compile(r"(linear1|linear2|mlp[._]0|mlp[._]2)\.(lora_down|lora_A)\.weight")


def names_of(state: Mapping[str, Tensor]) -> Names:
    """Whose LoRA it is, by its names and, where both models have them, by its shapes.

    What fits both (the double blocks' attention alone) is FLUX.1's: it has the same names in both.
    """
    for key, down in state.items():
        if _KLEIN_ONLY.search(key):
            return KLEIN
        if match := _MATRIX.search(key):
            up = state.get(key.replace("lora_down", "lora_up").replace("lora_A", "lora_B"))
            if up is None or up.ndim != 2 or down.ndim != 2:
                continue
            sides = _KLEIN_SIDES[match[1].replace(".", "_")]
            if down.shape[1] * sides[1] == up.shape[0] * sides[0]:
                return KLEIN
    return FLUX_1
