"""The trainer's own LoRA layer gives what peft's gives, forward and back, however the base is held."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from fluxcore.models.frozen import FrozenLinear
from fluxcore.training.lora_layers import LeanLoraLinear, make_lean

CPU = torch.device("cpu")


def layer_of(bias: bool = True, **more: Any) -> nn.Module:
    """Of 8 to 6 values, with a LoRA of rank 2 and alpha 3 that does something."""
    torch.manual_seed(3)
    model = nn.ModuleDict({"one": nn.Linear(8, 6, bias).requires_grad_(False)})
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=3, target_modules=["one"], **more), model)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)
    return model


def passed(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and the gradients of the input and of what is trained."""
    given = x.clone().requires_grad_()
    out = model["one"](given)  # type: ignore[index]
    out.float().pow(2).sum().backward()
    trained = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2 and all(gradient is not None for gradient in [given.grad, *trained])
    return [out.detach(), given.grad, *trained]  # type: ignore[list-item]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8), (1, 1, 8)])
def test_it_is_the_same_sum(bias: bool, shape: tuple[int, ...]) -> None:
    theirs = layer_of(bias).double()
    ours = deepcopy(theirs)
    make_lean(ours)
    assert type(ours["one"]) is LeanLoraLinear and type(theirs["one"]) is Linear
    x = torch.randn(shape, dtype=torch.float64)
    for own, other in zip(passed(ours, x), passed(theirs, x), strict=True):
        assert own.shape == other.shape and torch.allclose(own, other, rtol=1e-12)


@pytest.mark.parametrize("held", ["none", "int8"])
@pytest.mark.parametrize("autocast", [False, True])
def test_it_is_the_same_sum_in_less_precision(held: str, autocast: bool) -> None:
    base = torch.bfloat16 if autocast else torch.float32
    theirs = layer_of()
    one = theirs["one"]
    one.base_layer.to(base)
    one.cast_input_dtype_enabled = not autocast  # as train_in_32_bit has it
    if held != "none":
        one.base_layer = FrozenLinear(one.base_layer, "int8", CPU, swapped=False)
    ours = deepcopy(theirs)
    make_lean(ours)
    x = torch.randn(2, 3, 8, dtype=base)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, wanted = passed(ours, x), passed(theirs, x)
    assert found[0].dtype == wanted[0].dtype == base
    for own, other in zip(found, wanted, strict=True):
        assert own.dtype == other.dtype
        apart = (own.float() - other.float()).norm() / other.float().norm()
        assert apart < (0.01 if autocast else 1e-6), "bfloat16 has 8 bits"


def test_nothing_is_made_of_the_outputs_size_but_the_output() -> None:
    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = op(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.shape == (5, 6):
                made.add(out.untyped_storage().data_ptr())
                kept.append(out)
            return out

    for lean, count in ((False, 1 + 2 + 1), (True, 1)):
        made, kept = set[int](), list[Tensor]()
        model = layer_of()
        if lean:
            make_lean(model)
        with Sizes():
            model["one"](torch.randn(5, 8))
        assert len(made) == count


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}])
def test_other_kinds_are_computed_by_peft(kind: dict[str, Any]) -> None:
    theirs = layer_of(**kind)
    ours = deepcopy(theirs)
    make_lean(ours)
    assert type(ours["one"]) is LeanLoraLinear
    x = torch.randn(3, 8)
    found = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        found.append(model["one"](x))
    assert torch.equal(*found)


def test_adapters_that_come_later_are_computed_by_peft() -> None:
    model = layer_of()
    make_lean(model)
    one, x = model["one"], torch.randn(3, 8)
    one.update_layer("dora", r=2, lora_alpha=3, config=LoraConfig(r=2, lora_alpha=3, use_dora=True))
    one.lora_B["dora"].weight.data.normal_()
    plain = one(x)
    one.set_adapter(["dora"])
    dora = one(x)
    assert torch.equal(dora, Linear.forward(one, x)) and not torch.allclose(dora, plain)
    one.set_adapter(["default", "dora"])
    assert torch.equal(one(x), Linear.forward(one, x)) and not torch.allclose(one(x), dora)
    one.set_adapter(["none of this layer's"])
    assert torch.equal(one(x), one.base_layer(x))


@pytest.mark.parametrize(("base", "lora"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_two_precisions_without_autocast_are_pefts_matter(base: torch.dtype, lora: torch.dtype) -> None:
    model = layer_of()
    make_lean(model)
    one = model["one"].to(lora)
    one.base_layer.to(base)
    x = torch.randn(3, 8, dtype=base)
    assert torch.equal(one(x), Linear.forward(one, x))


def test_inputs_of_every_layout() -> None:
    theirs = layer_of()
    ours = deepcopy(theirs)
    make_lean(ours)
    for x in (torch.randn(0, 8), torch.randn(8, 3, 2).permute(2, 1, 0), torch.randn(5, 16)[:, ::2]):
        for own, other in zip(passed(ours, x), passed(theirs, x), strict=True):
            assert own.shape == other.shape and torch.allclose(own, other, atol=1e-5)
        for parameter in (*ours.parameters(), *theirs.parameters()):
            parameter.grad = None


def test_switched_off_or_merged_it_is_pefts() -> None:
    model = layer_of()
    make_lean(model)
    one, x = model["one"], torch.randn(3, 8)
    added = one(x)
    one.enable_adapters(False)
    assert torch.equal(one(x), one.base_layer(x)) and not torch.allclose(added, one(x))
    one.enable_adapters(True)
    one.merge()
    assert torch.allclose(one(x), added, atol=1e-5) and torch.equal(one(x), one.base_layer(x))
