"""The frozen base in little memory: 8-bit floats, 8-bit integers, NF4, or in the host's memory until it is needed.

Done after the LoRA has been added, layer by layer, so that the whole model never stands on the GPU in full precision.
A layer keeps its weight as it is held and makes the whole one only for a multiplication, in the forward and again in
the backward pass: autograd keeps none of it. torchao quantises; it runs on a CPU as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fluxcore.errors import UserError

from .held import Held, swapped_blocks
from .hidden import show

NF4_VALUES = 64 * 256
"""NF4's blocks of blocks: a weight whose count is no multiple of it stays as it is."""


class FrozenLinear(nn.Module):
    """A linear layer that is not trained: its weight quantised, or kept in the host's memory, or both.

    The weight is no parameter, so that `.to(device)` leaves it where it is, and nothing wraps or saves it.
    """

    def __init__(self, linear: nn.Linear, held: Held, device: torch.device, swapped: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = linear.in_features, linear.out_features, linear.weight.dtype
        self.bias = linear.bias
        weight = quantised(linear.weight.detach().to(device), held)
        self.weight = _to_host(weight) if swapped else weight
        self.plain = (self.weight.qdata, self.weight.scale) if hasattr(self.weight, "qdata") else None
        """Values and scales of torchao's 8-bit tensors, for the compiler, which takes plain tensors only."""

    def whole(self, device: torch.device) -> torch.Tensor:
        """The weight (out, in) on `device`, in the precision that is computed with."""
        if self.plain is not None and torch.compiler.is_compiling():
            values, scale = (part.to(device) for part in self.plain)
            return (values.float() * scale.float()).to(self.dtype)  # as dequantize() has it, to the bit
        weight = self.weight
        if weight.device != device:
            weight = weight.to(device, non_blocking=True)
        if hasattr(weight, "get_original_weight"):  # NF4
            return weight.get_original_weight()
        return weight.dequantize() if hasattr(weight, "qdata") else weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Multiply.apply(x.to(self.dtype), self)


class _Multiply(torch.autograd.Function):
    """x W' + b, of which only the gradient of x is wanted."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FrozenLinear) -> torch.Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.whole(x.device), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        layer = ctx.layer
        return gradient.to(layer.dtype) @ layer.whole(gradient.device), None


def quantised(weight: torch.Tensor, held: Held) -> torch.Tensor:
    """`weight` (out, in) as it is to be held. Raises UserError without torchao."""
    if held == "none":
        return weight
    if held == "nf4" and weight.numel() % NF4_VALUES:
        return weight.clone()  # of its own, not a part of the file that it was read from
    show("torchao")
    logging.getLogger("torchao").setLevel(logging.ERROR)  # kernels that it has not been built for, and that no one asks
    try:
        from torchao.quantization import Float8Tensor, Int8Tensor, PerRow, to_nf4
    except ImportError as error:
        raise UserError(
            f"a base held in {held} needs torchao, which can't be imported ({error}): install requirements.txt, or set "
            "fp8_base=false and quantize_base=none"
        ) from None
    if held == "nf4":
        return to_nf4(weight)
    if held == "int8":
        return Int8Tensor.from_hp(weight, granularity=PerRow())
    return Float8Tensor.from_hp(weight, float8_dtype=torch.float8_e4m3fn, granularity=PerRow())


def train_in_32_bit(transformer: nn.Module, computed_in: torch.dtype, device: torch.device) -> list[nn.Parameter]:
    """Put what is trained (the LoRA) into 32 bit; returns it. The base computes in `computed_in` on `device`.

    Where that is less, the transformer runs under autocast: it casts the LoRA's own matrices for the multiplication,
    and peft need not cast the layers' inputs, which would keep a copy of each for the backward pass.
    """
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    if computed_in != torch.float32:
        for layer in transformer.modules():
            if hasattr(layer, "cast_input_dtype_enabled"):
                layer.cast_input_dtype_enabled = False
        transformer.forward = torch.autocast(device.type, computed_in)(transformer.forward)
    return trained


def hold_base(transformer: nn.Module, device: torch.device, held: Held = "none", blocks_to_swap: int = 0) -> None:
    """Hold the frozen linear layers of a transformer's blocks as asked, on `device`; the rest stays where it is.

    `blocks_to_swap` counts double blocks, two single ones as one, as sd-scripts do: of 28, 14 double and 28 single
    blocks stay in the host's memory (pinned, where there is a GPU) and are copied over for each use.
    """
    doubles, singles = list(transformer.transformer_blocks), list(transformer.single_transformer_blocks)
    away = swapped_blocks(blocks_to_swap, len(doubles), len(singles))
    hosted = {id(block) for block in doubles[len(doubles) - away[0] :] + singles[len(singles) - away[1] :]}
    for block in doubles + singles:
        if held == "none" and id(block) not in hosted:
            continue
        for parent, name, linear in list(_frozen_linears(block)):
            setattr(parent, name, FrozenLinear(linear, held, device, id(block) in hosted))
    if held != "none" and device.type == "cpu":  # what is left holds the whole mapped file in memory
        for tensor in (*transformer.parameters(), *transformer.buffers()):
            if not tensor.requires_grad:
                tensor.data = tensor.data.clone()


def held_bytes(module: nn.Module, device: torch.device | None = None) -> int:
    """Bytes of a module's frozen weights (and of what is not linear), where `device` is given only those on it."""
    tensors = [*(p for p in module.parameters() if not p.requires_grad), *module.buffers()]
    for layer in module.modules():
        if isinstance(layer, FrozenLinear):
            tensors += inner_tensors(layer.weight)
    return sum(t.untyped_storage().nbytes() for t in tensors if device is None or t.device == device)


def inner_tensors(weight: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a quantised weight is made of; of a plain one itself."""
    return [getattr(weight, name) for name in _inner_names(weight)] or [weight]


def _inner_names(weight: torch.Tensor) -> list[str]:
    flatten = getattr(weight, "__tensor_flatten__", None)
    names = flatten()[0] if flatten is not None else []
    return [name for name in names if isinstance(getattr(weight, name), torch.Tensor)]


def _frozen_linears(block: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in block.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear and not child.weight.requires_grad:
                yield parent, name, child


def _to_host(weight: torch.Tensor) -> torch.Tensor:
    weight = weight.to("cpu")
    if torch.cuda.is_available():
        if not (names := _inner_names(weight)):
            return weight.pin_memory()
        for name in names:
            setattr(weight, name, getattr(weight, name).pin_memory())
    return weight
