"""The frozen base in little memory: same results where it is only moved, near ones where it is quantised, 32-bit LoRA."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluxcore.models.frozen import FrozenLinear, held_bytes, hold_base, inner_tensors, train_in_32_bit
from fluxcore.models.held import Held, swapped_blocks

CPU = torch.device("cpu")


def tiny(dtype: torch.dtype = torch.bfloat16, doubles: int = 2, singles: int = 2, heads: int = 4) -> torch.nn.Module:
    """A FLUX of 32 values a head with a LoRA that does something."""
    from diffusers import FluxTransformer2DModel
    from peft import LoraConfig

    from fluxcore.models.flux import LORA_TARGETS

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        attention_head_dim=32, axes_dims_rope=[8, 12, 12], guidance_embeds=True, in_channels=64, joint_attention_dim=64,
        num_attention_heads=heads, num_layers=doubles, num_single_layers=singles, pooled_projection_dim=64,
    ).to(dtype)  # fmt: skip
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=LORA_TARGETS, init_lora_weights=False))
    return model


def step(model: torch.nn.Module, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """One forward and backward pass on fixed noise; the output."""
    noise = torch.Generator().manual_seed(1)
    random = lambda *shape: torch.randn(*shape, generator=noise).to(dtype)
    out: torch.Tensor = model(
        hidden_states=random(2, 16, 64), timestep=torch.tensor([0.2, 0.9], dtype=dtype), guidance=torch.ones(2),
        pooled_projections=random(2, 64), encoder_hidden_states=random(2, 8, 64), txt_ids=torch.zeros(8, 3),
        img_ids=torch.zeros(16, 3), return_dict=False,
    )[0]  # fmt: skip
    out.float().square().mean().backward()
    return out.detach().float()


def gradients(trained: list[torch.nn.Parameter]) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def plain() -> tuple[torch.Tensor, torch.Tensor, int]:
    model = tiny()
    trained = train_in_32_bit(model, torch.bfloat16, CPU)
    return step(model), gradients(trained), held_bytes(model)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("held", "swap", "near", "size"),
    [("none", 3, 0.0, 1.0), ("fp8", 0, 0.05, 0.57), ("int8", 2, 0.02, 0.57), ("nf4", 0, 0.2, 0.35)],
)
def test_a_held_base_trains_the_lora_as_the_plain_one_does(
    plain: tuple[torch.Tensor, torch.Tensor, int], held: str, swap: int, near: float, size: float, checkpointing: bool
) -> None:
    model = tiny()
    trained = train_in_32_bit(model, torch.bfloat16, CPU)
    hold_base(model, CPU, held, swap)  # type: ignore[arg-type]
    if checkpointing:
        model.enable_gradient_checkpointing()
    output = step(model.train())
    assert distance(output, plain[0]) <= near / 4
    assert distance(gradients(trained), plain[1]) <= near
    assert held_bytes(model) == pytest.approx(plain[2] * size, rel=0.04)
    assert (distance(output, plain[0]) > 0) == (held != "none")  # it is quantised indeed


@pytest.mark.parametrize("held", ["none", "fp8", "int8", "nf4"])
def test_the_lora_its_gradients_and_its_optimizer_are_in_32_bit_whatever_the_base_is_in(held: str) -> None:
    model = tiny()
    trained = train_in_32_bit(model, torch.bfloat16, CPU)
    hold_base(model, CPU, held)  # type: ignore[arg-type]
    step(model)
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert {parameter.grad.dtype for parameter in trained if parameter.grad is not None} == {torch.float32}
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert moments and {value.dtype for value in moments} == {torch.float32}
    layers = [layer for layer in model.modules() if isinstance(layer, FrozenLinear)]
    kept = {
        tensor.dtype for layer in layers for tensor in inner_tensors(layer.weight) if tensor.ndim and len(tensor) > 99
    }
    wanted = {"none": set(), "fp8": {torch.float8_e4m3fn}, "int8": {torch.int8}, "nf4": {torch.uint8, torch.int8}}
    assert kept - {torch.float32, torch.bfloat16} == wanted[held]
    assert all(name.count("lora_") for name, parameter in model.named_parameters() if parameter.requires_grad)


@pytest.mark.parametrize(("held", "heads"), [("fp8", 4), ("int8", 4), ("nf4", 4), ("nf4", 3)])
def test_a_base_held_in_less_lets_go_of_the_file_that_it_was_read_from(tmp_path: Path, held: Held, heads: int) -> None:
    def mapped() -> bool:
        return str(file) in Path("/proc/self/maps").read_text()

    file = tmp_path / "base.safetensors"
    model = tiny(heads=heads)
    frozen = {name: one for name, one in model.named_parameters() if not one.requires_grad}
    before = {name: one.detach().clone() for name, one in frozen.items()}
    save_file(before, file)
    for name, value in load_file(file).items():
        frozen[name].data = value
        del value
    del frozen
    trained = {id(one): one.data_ptr() for one in model.parameters() if one.requires_grad}
    assert mapped()
    hold_base(model, CPU, held)
    gc.collect()
    assert not mapped()
    assert {id(one): one.data_ptr() for one in model.parameters() if one.requires_grad} == trained
    before |= {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_autograd_keeps_no_whole_weight_of_a_held_layer() -> None:
    model = tiny(doubles=1, singles=1)
    train_in_32_bit(model, torch.bfloat16, CPU)
    hold_base(model, CPU, "int8")
    widest = max(
        (layer for layer in model.modules() if isinstance(layer, FrozenLinear)), key=lambda one: one.out_features
    )
    shapes: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (shapes.append(tuple(t.shape)), t)[1], lambda t: t):
        step(model)
    assert shapes
    size = (widest.out_features, widest.in_features)
    assert size not in shapes and size[::-1] not in shapes


def test_swapped_blocks_are_counted_as_sd_scripts_count_them() -> None:
    assert swapped_blocks(0, 19, 38) == (0, 0)
    assert swapped_blocks(18, 19, 38) == (9, 18)
    assert swapped_blocks(28, 19, 38) == (14, 28)
    assert swapped_blocks(35, 19, 38) == (17, 36)
    assert swapped_blocks(35, 2, 4) == (2, 4)
    model = tiny()
    hold_base(model, CPU, "none", 1)
    assert not any(isinstance(layer, FrozenLinear) for layer in model.transformer_blocks.modules())
    assert all(
        any(isinstance(layer, FrozenLinear) for layer in block.modules()) for block in model.single_transformer_blocks
    )


def test_moving_the_transformer_leaves_swapped_weights_where_they_are() -> None:
    model = tiny()
    hold_base(model, CPU, "none", 35)
    model.to("meta")
    layers = [layer for layer in model.modules() if isinstance(layer, FrozenLinear)]
    assert layers and all(layer.weight.device.type == "cpu" for layer in layers)
    assert layers[0].whole(torch.device("meta")).device.type == "meta"


def test_without_torchao_a_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from fluxcore.errors import UserError
    from fluxcore.models.frozen import quantised

    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match="needs torchao.*install requirements.txt.*fp8_base=false"):
        quantised(torch.zeros(256, 256), "int8")
    assert quantised(torch.zeros(3, 5), "nf4").shape == (3, 5), "of a size that NF4 has no blocks for"
