"""`python -m fluxcore.planner.measure`: a request in JSON on standard input, what it takes on standard output.

The trainer's own classes and its own step run with fake tensors: shapes and types on torch's meta device, no data, so
that FLUX needs neither its weights nor a GPU. A fake tensor says that it is on the CPU, because a build without CUDA
can make no other; where a GPU's autocast differs, `gpu_autocast` does as the GPU would.

What the GPU's allocator reserves beyond that follows from its rules (allocator.py). What can't be seen so is named in
docs/memory.md: cuBLAS' and cuDNN's workspaces.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2Transformer2DModel, FluxTransformer2DModel
from peft import LoraConfig
from peft.tuners.lycoris_utils import LycorisLayer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel, Qwen3Config, Qwen3ForCausalLM, T5Config, T5EncoderModel
from transformers.initialization import no_init_weights

from fluxcore.config import parse_config
from fluxcore.models.checkpointing import checkpoint_blocks
from fluxcore.models.flux import FLUX_1, LORA_TARGETS
from fluxcore.models.flux2 import FLUX_2_KLEIN
from fluxcore.models.frozen import FrozenLinear, held_bytes, hold_base, inner_tensors, train_in_32_bit
from fluxcore.training.lora_layers import make_lean
from fluxcore.training.network import add_network

from .live import Live

CPU = torch.device("cpu")
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLUX_2 = "Flux2Transformer2DModel"


@contextmanager
def gpu_autocast(dtype: torch.dtype) -> Iterator[None]:
    """Layers normalised in 32 bit, as autocast does on a GPU and does not on a CPU; also where they are recomputed."""
    plain = nn.functional.layer_norm

    def in_32_bit(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return plain(x.float(), *args, **kwargs)

    if dtype != torch.float32:
        nn.functional.layer_norm = in_32_bit
    try:
        yield
    finally:
        nn.functional.layer_norm = plain


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """What the parts take; bytes, and floating point operations of one step.

    `request`: `transformer`, `vae`, `text_encoder`, `text_encoder_2` (the model's config.json files; klein has one text
    encoder, and is told by its `_class_name`), `precision`, `held` (held.Held), `rank`, `checkpointing` (and
    `checkpointing_interval`, where not of every block), `batch`, `tokens` (of text), `size`, `picture_size` (of the
    largest that is encoded) and `sample_size` (height, width in pixels); `network`, RunConfig's settings of what is
    trained, where they are not its defaults; `targets`, a pattern of the layers with a LoRA, where they are not the
    trainer's.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng():
        found = _transformer(request)
        found |= _vae(request["vae"], request.get("picture_size", request["size"]), request["sample_size"])
        found |= _text(request) if "text_encoder_2" in request else _qwen3(request)
    return found


def transformer_in_fakes(request: dict[str, Any]) -> dict[str, Any]:
    """What measure() says of the transformer alone."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng():
        return _transformer(request)


def _transformer(request: dict[str, Any]) -> dict[str, Any]:
    multiple = 2 ** (len(request["vae"]["block_out_channels"]) - 1)
    dtype = DTYPES[request["precision"]]
    model = build_transformer(request["transformer"], dtype)
    doubles, singles = model.transformer_blocks, model.single_transformer_blocks
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if targets := request.get("targets"):
        add_lora(model, request["rank"], targets)
    else:
        add_trained(model, {"network_dim": request["rank"], **request.get("network", {})})
    to_fake(model)
    trained = train_in_32_bit(model, dtype, CPU)
    hold_base(model, CPU, request["held"])
    if request["checkpointing"]:
        checkpoint_blocks(model, request.get("checkpointing_interval", 1))
    model.train()
    for layer in model.modules():
        if isinstance(layer, LycorisLayer):  # in training it asks a random number, which no fake tensor has
            layer.eval()
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    step, kept = run_step(model, dtype, request["batch"], request["size"], request["tokens"], multiple)
    drawn = run_forward(model, dtype, request["sample_size"], request["tokens"], multiple)
    layers = [layer for layer in model.modules() if isinstance(layer, FrozenLinear)]
    return {
        "parameters": parameters,
        "base_bytes": held_bytes(model),
        "double_bytes": held_bytes(doubles[0]) if doubles else 0,
        "single_bytes": held_bytes(singles[0]) if singles else 0,
        "largest_bytes": max((_bytes(layer) for layer in layers), default=0) or _largest(model),
        "lora_parameters": sum(parameter.numel() for parameter in trained),
        "lora_edges": sum(sum(parameter.shape) for parameter in trained),
        "train_bytes": step.peak,
        "train_reserve": step.reserves(),
        "kept_bytes": kept,
        "step_flops": step.flops,
        "sample_bytes": drawn.peak,
        "sample_reserve": drawn.reserves(),
    }


def build_transformer(config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """A FLUX transformer of that config.json on the meta device, frozen."""
    kind = Flux2Transformer2DModel if config.get("_class_name") == FLUX_2 else FluxTransformer2DModel
    with torch.device("meta"), _default(dtype):
        model = kind.from_config(config)
    return model.requires_grad_(False)


def add_trained(model: nn.Module, settings: dict[str, Any]) -> None:
    """What the trainer trains with these settings of a RunConfig, on the meta device. Raises TrainingError."""
    with torch.device("meta"):
        family = FLUX_2_KLEIN if isinstance(model, Flux2Transformer2DModel) else FLUX_1
        add_network(model, parse_config(settings), family)


def add_lora(model: nn.Module, rank: int, targets: str = LORA_TARGETS) -> None:
    """A LoRA on the layers of that pattern, on the meta device."""
    with torch.device("meta"):
        model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        make_lean(model)  # as add_network does


def to_fake(module: nn.Module) -> None:
    """Replace a module's meta tensors by fake ones; to be called inside the mode."""
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                fake = torch.empty(value.shape, dtype=value.dtype, device=CPU)
                part._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in list(part._buffers.items()):
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=CPU)


def run_step(
    model: nn.Module, dtype: torch.dtype, batch: int, size: tuple[int, int], tokens: int, multiple: int
) -> tuple[Live, int]:
    """One forward and backward pass as the trainer does it, and what autograd keeps between the two.

    Gradients are there before, so they do not count.
    """
    inputs = _inputs(model, dtype, batch, size, tokens, multiple)
    live = Live([*_held(model), *(value for value in inputs.values() if isinstance(value, torch.Tensor))])
    with live, gpu_autocast(dtype):
        velocity = model(**inputs, return_dict=False)[0]
        loss = (velocity.float() - torch.zeros(velocity.shape)).square().mean()
        kept = live.now
        loss.backward()
    return live, kept


def run_forward(model: nn.Module, dtype: torch.dtype, size: tuple[int, int], tokens: int, multiple: int) -> Live:
    """One denoising step of a sample."""
    inputs = _inputs(model, dtype, 1, size, tokens, multiple)
    live = Live([*_held(model), *(value for value in inputs.values() if isinstance(value, torch.Tensor))])
    with torch.no_grad(), live, gpu_autocast(dtype):
        model(**inputs, return_dict=False)
    return live


def _inputs(
    model: nn.Module, dtype: torch.dtype, batch: int, size: tuple[int, int], tokens: int, multiple: int
) -> dict[str, torch.Tensor | None]:
    config = model.config
    image = (size[0] // multiple // 2) * (size[1] // multiple // 2)
    if isinstance(model, Flux2Transformer2DModel):
        return {
            "hidden_states": torch.zeros(batch, image, config.in_channels, dtype=dtype),
            "timestep": torch.zeros(batch, dtype=dtype),
            "guidance": torch.zeros(batch) if config.guidance_embeds else None,
            "encoder_hidden_states": torch.zeros(batch, tokens, config.joint_attention_dim, dtype=dtype),
            "txt_ids": torch.zeros(batch, tokens, 4, dtype=torch.long),
            "img_ids": torch.zeros(batch, image, 4, dtype=torch.long),
        }
    return {
        "hidden_states": torch.zeros(batch, image, config.in_channels, dtype=dtype),
        "timestep": torch.zeros(batch, dtype=dtype),
        "guidance": torch.zeros(batch) if config.guidance_embeds else None,
        "pooled_projections": torch.zeros(batch, config.pooled_projection_dim, dtype=dtype),
        "encoder_hidden_states": torch.zeros(batch, tokens, config.joint_attention_dim, dtype=dtype),
        "txt_ids": torch.zeros(tokens, 3, dtype=dtype),
        "img_ids": torch.zeros(image, 3, dtype=dtype),
    }


def _vae(config: dict[str, Any], size: list[int], sample_size: list[int]) -> dict[str, Any]:
    """In 32 bit, one picture at a time, as the trainer encodes and decodes."""
    kind = AutoencoderKLFlux2 if config.get("_class_name") == AutoencoderKLFlux2.__name__ else AutoencoderKL
    with torch.device("meta"):
        vae = kind.from_config(config).requires_grad_(False)
    to_fake(vae)
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    picture = torch.zeros(1, config["in_channels"], *size)
    latent = torch.zeros(1, config["latent_channels"], *(pixels // factor for pixels in sample_size))
    with torch.no_grad():
        with Live([*_held(vae), picture]) as encode:
            vae.encode(picture)
        with Live([*_held(vae), latent]) as decode:
            vae.decode(latent)
    return {
        "vae_bytes": held_bytes(vae),
        "encode_bytes": encode.peak,
        "encode_reserve": encode.reserves(),
        "decode_bytes": decode.peak,
        "decode_reserve": decode.reserves(),
    }


def _text(request: dict[str, Any]) -> dict[str, Any]:
    """Weights by two small depths, further layers being alike; activations of one prompt, to which no depth adds."""
    dtype = DTYPES[request["precision"]]
    weights, peak = 0, 0
    for key, config_type, model_type, depth, tokens in (
        ("text_encoder", CLIPTextConfig, CLIPTextModel, "num_hidden_layers", 77),
        ("text_encoder_2", T5Config, T5EncoderModel, "num_layers", request["tokens"]),
    ):
        values = {**request[key], "dtype": None, "torch_dtype": None}
        sizes = []
        for layers in (1, 2):
            with torch.device("meta"), _default(dtype), no_init_weights():
                model = model_type(config_type(**{**values, depth: layers})).requires_grad_(False).eval()
            sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        weights += (sizes[0] + (values[depth] - 1) * (sizes[1] - sizes[0])) * dtype.itemsize
        to_fake(model)
        ids = torch.zeros(1, min(tokens, values.get("max_position_embeddings", tokens)), dtype=torch.long)
        with torch.no_grad(), Live([*_held(model), ids]) as live:
            model(ids)
        peak = max(peak, live.peak)
    return {"text_bytes": weights, "text_peak_bytes": peak}


def _qwen3(request: dict[str, Any]) -> dict[str, Any]:
    """Klein's text encoder, called as its pipeline does; at full depth, because each layer's output is kept."""
    dtype = DTYPES[request["precision"]]
    config = Qwen3Config(**{**request["text_encoder"], "dtype": None, "torch_dtype": None})
    with torch.device("meta"), _default(dtype), no_init_weights():
        model = Qwen3ForCausalLM(config).requires_grad_(False).eval()
    model.tie_weights()
    to_fake(model)
    model.tie_weights()
    ids = torch.zeros(1, request["tokens"], dtype=torch.long)
    mask = torch.ones(1, request["tokens"], dtype=torch.long)
    with torch.no_grad(), Live([*_held(model), ids, mask]) as live:
        layers = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        torch.stack([layers[number] for number in (9, 18, 27) if number < len(layers)], dim=1)
    return {"text_bytes": held_bytes(model), "text_peak_bytes": live.peak}


def _held(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor that a model keeps, its gradients included."""
    for parameter in model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from model.buffers()
    for layer in model.modules():
        if isinstance(layer, FrozenLinear):
            yield from inner_tensors(layer.weight)


def _bytes(layer: FrozenLinear) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in inner_tensors(layer.weight))


def _largest(model: nn.Module) -> int:
    linears = (part for part in model.modules() if isinstance(part, nn.Linear))
    return max((linear.weight.untyped_storage().nbytes() for linear in linears), default=0)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    os.nice(10)  # a form may ask while a training runs
    json.dump(measure(json.load(sys.stdin)), sys.stdout)
