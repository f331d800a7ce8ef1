"""Gradient checkpointing of every block, of some and of none: the same loss and gradients, and less is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_planner import FOUND, flux, tiny_request
from training_tools import lora_of, losses_of, new_run, some_pictures, train_here

from fluxcore.models.checkpointing import checkpoint_blocks
from fluxcore.planner.plan import advice, make_plan
from fluxcore.planner.request import request_of


def test_chosen_blocks_are_computed_twice_and_the_result_is_the_same_to_the_bit() -> None:
    from fluxcore.models.frozen import train_in_32_bit
    from fluxcore.planner import measure

    shape = tiny_request()["transformer"] | {"num_layers": 2, "num_single_layers": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = measure.FluxTransformer2DModel.from_config(shape).requires_grad_(False)
        model.add_adapter(measure.LoraConfig(r=4, lora_alpha=4, target_modules=measure.LORA_TARGETS))
        inputs = {
            name: torch.randn_like(value) if value.is_floating_point() else value
            for name, value in measure._inputs(model, torch.float32, 2, (64, 64), 8, 8).items()
            if value is not None
        }
        for name, value in model.named_parameters():
            if "lora_B" in name:  # they start from zero, and every gradient but theirs would be
                torch.nn.init.normal_(value)
    trained = train_in_32_bit(model, torch.float32, torch.device("cpu"))
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    calls: list[int] = []
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    model.train()

    def run() -> tuple[torch.Tensor, list[torch.Tensor], list[int]]:
        calls.clear()
        loss = model(**inputs, return_dict=False)[0].square().mean()
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in trained if parameter.grad is not None]
        model.zero_grad()
        return loss.detach(), gradients, sorted(set(number for number in calls if calls.count(number) == 2))

    found = [run()]
    for interval in (1, 2, 4):
        checkpoint_blocks(model, interval)
        found.append(run())
    assert [twice for _, _, twice in found] == [[], [0, 1, 2, 3, 4, 5], [0, 2, 4], [0, 4]]
    loss, gradients, _ = found[0]
    assert len(gradients) == len(trained) and all(gradient.any() for gradient in gradients)
    for other, theirs, _ in found[1:]:
        assert torch.equal(loss, other)
        assert all(torch.equal(one, two) for one, two in zip(gradients, theirs, strict=True))


def test_a_training_is_the_same_with_any_interval(tmp_path: Path) -> None:
    few: dict[str, Any] = {"max_train_steps": 2, "network_dim": 2}
    runs = [
        new_run(tmp_path, name, some_pictures, **few, **settings)
        for name, settings in {
            "none": {"gradient_checkpointing": False},
            "all": {"gradient_checkpointing": True},
            "some": {"gradient_checkpointing": True, "gradient_checkpointing_interval": 3},
        }.items()
    ]
    for run in runs:
        train_here(run)
    for run in runs[1:]:
        assert losses_of(run) == losses_of(runs[0])
        assert all(torch.equal(value, lora_of(run)[key]) for key, value in lora_of(runs[0]).items())


def test_the_planner_counts_it_and_advises_it() -> None:
    from fluxcore.planner import measure

    shape = tiny_request()["transformer"] | {"num_layers": 3, "num_single_layers": 6}
    kept = [
        measure.transformer_in_fakes(tiny_request(transformer=shape, **asked))["kept_bytes"]
        for asked in ({}, {"checkpointing_interval": 3}, {"checkpointing": False})
    ]
    assert kept[0] < kept[1] < kept[2]
    assert kept[1] == pytest.approx(kept[0] + (kept[2] - kept[0]) * 6 / 9, rel=0.15), "6 of 9 blocks keep all"
    assert "checkpointing_interval" not in request_of(flux())
    assert "checkpointing_interval" not in request_of(
        flux(gradient_checkpointing=False, gradient_checkpointing_interval=2)
    )
    config = flux(gradient_checkpointing_interval=2)
    assert request_of(config)["checkpointing_interval"] == 2
    made = make_plan(config, 20, {**FOUND, "train_bytes": 8 << 30})
    changes, enough = advice(config, made, 30 << 30)
    assert changes == {"gradient_checkpointing_interval": 1} and enough
