"""FLUX.2 klein from single files as ComfyUI's users have them: every tensor accounted for. Needs torch.

`flux-2-klein-base-4b.safetensors` has Black Forest Labs' names (their `flux2/model.py`), which diffusers' own converter
turns around; `flux2-vae.safetensors` theirs (`flux2/autoencoder.py`) or diffusers'; `qwen_3_4b.safetensors` those of
transformers' Qwen3, without the `lm_head` that nothing here needs. Sizes are read from each file's header.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

from .errors import ModelError
from .files import SingleFiles
from .single_files import AE, SCHEDULER, TRANSFORMER, NameOnly, count_blocks, fill, shape_of, shapes_of
from .tokenizers import find_qwen_tokenizer
from .weights import PartFile

QWEN3 = "qwen3"
READ_LAYERS = 3
"""So many of Qwen3's layers stand side by side in the transformer's text."""
DEEPEST_LAYER = 27
VAE_CONFIG: dict[str, Any] = {}
"""`AutoencoderKLFlux2`'s defaults are FLUX.2's; a test makes it narrower."""


def load_pipeline(base: SingleFiles, dtype: torch.dtype, **without: Any) -> Flux2KleinPipeline:
    """The pipeline on the CPU, without the parts that `without` names. Raises ModelError."""
    parts: dict[str, Any] = dict(without)
    if "transformer" not in without:
        parts["transformer"] = load_transformer(base.files[TRANSFORMER], dtype)
    if "vae" not in without:
        parts["vae"] = load_vae(base.files[AE])
    if "text_encoder" not in without:
        parts["text_encoder"] = load_qwen3(base.files[QWEN3], dtype, base.files[TRANSFORMER])
        parts["tokenizer"] = _tokenizer(find_qwen_tokenizer(base.tokenizers, base.files[TRANSFORMER]), parts)
    # FLUX.2's scheduler_config.json is FLUX.1-dev's; the pipeline brings a shift of its own.
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER, shift=3.0, use_dynamic_shifting=True)
    return Flux2KleinPipeline(scheduler=scheduler, **parts)


def load_transformer(path: Path, dtype: torch.dtype) -> Flux2Transformer2DModel:
    """The transformer from a file with BFL's names, in `dtype`. Raises ModelError."""
    file = PartFile(path, TRANSFORMER, klein=True)
    shapes = file.shapes
    width, channels = shape_of(file, shapes, "img_in.weight", 2)
    head = shape_of(file, shapes, "double_blocks.0.img_attn.norm.query_norm.scale", 1)[0]
    if head % 8 or width % head:
        file.check(shaped=f"its heads are {head} wide, which does not fit its width of {width}")
    with init_empty_weights():
        transformer = Flux2Transformer2DModel(
            in_channels=channels,
            num_layers=count_blocks(shapes, r"double_blocks\.(\d+)\."),
            num_single_layers=count_blocks(shapes, r"single_blocks\.(\d+)\."),
            attention_head_dim=head,
            num_attention_heads=width // head,
            joint_attention_dim=shape_of(file, shapes, "txt_in.weight", 2)[1],
            timestep_guidance_channels=shape_of(file, shapes, "time_in.in_layer.weight", 2)[1],
            axes_dims_rope=(head // 4,) * 4,
            guidance_embeds=False,
        )
    # First without the values, so that a wrong file is told at once.
    named = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    file.compare(shapes_of(transformer.state_dict()), shapes_of(_converted(file, named)), left_over=named)
    return fill(transformer, _converted(file, file.read(dtype)))


def load_vae(path: Path) -> AutoencoderKLFlux2:
    """The autoencoder from a file with BFL's or diffusers' names, in 32 bit. Raises ModelError."""
    file = PartFile(path, AE, klein=True)
    with init_empty_weights(include_buffers=True):
        vae = AutoencoderKLFlux2(**VAE_CONFIG)
    wanted = {name: shape for name, shape in shapes_of(vae.state_dict()).items() if name != _COUNT}
    places = {name: _vae_name(name) for name in file.shapes}
    origins = {name: name for name in file.shapes}
    if not any(name.startswith("encoder.down_blocks.") for name in file.shapes):
        try:
            origins = convert_ldm_vae_checkpoint({new: NameOnly(old) for old, new in places.items()}, vae.config)
        except (KeyError, AttributeError):
            origins = {}
        origins |= {name: name for name in file.shapes if name.startswith("bn.")}
    if not origins:
        file.check(missing=["decoder.conv_in.weight"])
    left_over = set(file.shapes) - set(origins.values())
    file.check(set(wanted) - set(origins), [*left_over, *(set(origins) - set(wanted))])
    read = file.read(torch.float32)
    tensors = {new: read[old] for new, old in origins.items()}
    for name, value in tensors.items():  # attention's matrices are convolutions of one pixel in BFL's files
        if value.dim() == len(wanted[name]) + 2 and value.shape[2:] == (1, 1):
            tensors[name] = value[:, :, 0, 0]
    file.compare(wanted, shapes_of(tensors))
    return fill(vae, tensors | {_COUNT: torch.tensor(0)})


def load_qwen3(path: Path, dtype: torch.dtype, transformer: Path) -> Qwen3ForCausalLM:
    """Qwen3 as the text encoder of the model in `transformer`, in `dtype`. Raises ModelError."""
    file = PartFile(path, QWEN3)
    shapes = {name: shape for name, shape in file.shapes.items() if name != "lm_head.weight"}
    words, width = shape_of(file, shapes, "model.embed_tokens.weight", 2)
    first = "model.layers.0."
    head = shape_of(file, shapes, f"{first}self_attn.q_norm.weight", 1)[0]
    layers = count_blocks(shapes, r"model\.layers\.(\d+)\.")
    reads = PartFile(transformer, TRANSFORMER, klein=True).shapes.get("txt_in.weight", (0, 0))[-1]
    if reads != READ_LAYERS * width:
        file.check(shaped=f"it is {width} wide, and the transformer reads a Qwen3 of width {reads // READ_LAYERS}")
    if layers <= DEEPEST_LAYER:
        file.check(shaped=f"it has {layers} layers, and layer {DEEPEST_LAYER} is read with one more after it")
    config = Qwen3Config(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=shape_of(file, shapes, f"{first}mlp.gate_proj.weight", 2)[0],
        num_hidden_layers=layers,
        num_attention_heads=shape_of(file, shapes, f"{first}self_attn.q_proj.weight", 2)[0] // head,
        num_key_value_heads=shape_of(file, shapes, f"{first}self_attn.k_proj.weight", 2)[0] // head,
        head_dim=head,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,  # the words that it would say are not asked for
    )
    with init_empty_weights():
        model = Qwen3ForCausalLM(config)
    wanted = {name: shape for name, shape in shapes_of(model.state_dict()).items() if name != "lm_head.weight"}
    file.compare(wanted, shapes)
    tensors = {name: value for name, value in file.read(dtype).items() if name in wanted}
    fill(model, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    model.tie_weights()
    return model.requires_grad_(False)


_COUNT = "bn.num_batches_tracked"


def _vae_name(name: str) -> str:
    """BFL's two convolutions around the latents, where diffusers' converter looks for them."""
    for inner in ("encoder.quant_conv.", "decoder.post_quant_conv."):
        if name.startswith(inner):
            return name.partition(".")[2]
    return name


def _converted(file: PartFile, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` under diffusers' names; what it does not know keeps its name, and shows as left over."""
    try:
        return convert_flux2_transformer_checkpoint_to_diffusers(tensors)
    except KeyError as error:
        file.check(left_over=[str(error.args[0])])
    except (IndexError, RuntimeError, ValueError) as error:
        file.check(shaped=f"its tensors have other shapes ({str(error).splitlines()[0]})")
    raise AssertionError("check raises")


def _tokenizer(folder: Path, parts: dict[str, Any]) -> Any:
    try:
        tokenizer = Qwen2TokenizerFast.from_pretrained(folder, local_files_only=True)
        highest = max(tokenizer.get_vocab().values())
    except Exception as error:  # the library's own, of many kinds
        raise ModelError(f"the tokenizer in {folder} can't be read: {str(error).partition(chr(10))[0]}") from None
    if not tokenizer.chat_template:
        raise ModelError(f"the tokenizer in {folder} has no chat template, which klein's prompts are put into")
    if highest >= parts["text_encoder"].config.vocab_size:
        raise ModelError(
            f"the tokenizer in {folder} is another model's: it has {highest + 1} words, the text encoder "
            f"{parts['text_encoder'].config.vocab_size}"
        )
    return tokenizer
