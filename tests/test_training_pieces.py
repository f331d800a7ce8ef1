"""The trainer's pure parts: order, noise, noise levels, prompts."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch

from fluxcore.models.flux import training_mu
from fluxcore.training.metadata import model_hash
from fluxcore.training.noise_levels import draw_sigmas
from fluxcore.training.prompts import parse_prompts
from fluxcore.training.randomness import epoch_order, step_items, step_noise, step_normal, step_uniform


def test_an_epoch_shows_every_item_once_in_another_order_each_time() -> None:
    first, second = epoch_order(42, 1, 50), epoch_order(42, 2, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first == epoch_order(42, 1, 50)
    assert first != epoch_order(43, 1, 50)


def test_batches_cut_the_epoch_without_loss_and_the_next_step_starts_the_next_epoch() -> None:
    steps = [step_items(1, step, (0,) * 10, (4,))[0] for step in range(1, 7)]
    assert [len(batch) for batch in steps] == [4, 4, 2, 4, 4, 2]
    assert sorted(sum(steps[:3], ())) == list(range(10))
    assert list(sum(steps[3:], ())) == epoch_order(1, 2, 10)


def test_noise_is_a_function_of_seed_step_and_sample_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    noise = step_noise(42, 7, 3, (2, 4, 4))
    step_normal(42, 7, 3)
    step_uniform(42, 7, "drop", 3)
    assert torch.equal(before, torch.get_rng_state())
    assert noise.shape == (3, 2, 4, 4)
    assert torch.equal(noise, step_noise(42, 7, 3, (2, 4, 4)))
    assert torch.equal(noise[:2], step_noise(42, 7, 2, (2, 4, 4)))  # another batch size changes no sample
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, step_noise(42, 8, 3, (2, 4, 4)))


def test_noise_levels_follow_the_published_formulas() -> None:
    normal = torch.tensor([-2.0, -0.5, 0.0, 1.0])
    s = 1 / (1 + torch.exp(-normal))
    assert torch.allclose(draw_sigmas(normal, "sigmoid"), s)
    k = 3.1582
    assert torch.allclose(draw_sigmas(normal, "shift", shift=k), s * k / (1 + (k - 1) * s))
    mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
    assert training_mu(1024) == pytest.approx(mu)
    expected = math.exp(mu) / (math.exp(mu) + (1 / s - 1))
    assert torch.allclose(draw_sigmas(normal, "flux_shift", mu=training_mu(1024)), expected)
    with pytest.raises(ValueError, match="unknown timestep sampling"):
        draw_sigmas(normal, "cosine")


def test_prompts_have_sd_scripts_flags() -> None:
    prompts = parse_prompts(
        "# a comment\n\n  red apple \ncat --w 512 --h 768 --d 7 --s 30 --l 2.5 --g 4 --n ugly, dog\n"
    )
    assert [prompt.text for prompt in prompts] == ["red apple", "cat"]
    plain, full = prompts
    assert (plain.width, plain.seed, plain.steps, plain.scale, plain.guidance) == (None, None, 20, 1.0, 3.5)
    assert (full.width, full.height, full.seed, full.steps) == (512, 768, 7, 30)
    assert (full.scale, full.guidance, full.negative) == (2.5, 4.0, "ugly, dog")


@pytest.mark.parametrize("line", ["cat --w big", "cat --s 0", "cat --d -1", "cat --l x"])
def test_a_wrong_flag_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="sample prompt"):
        parse_prompts(line)


def test_a_base_in_one_file_has_the_short_hash_that_web_ui_gives_it(tmp_path: Path) -> None:
    file = tmp_path / "flux1-dev.safetensors"
    part = bytes(range(256)) * 256
    file.write_bytes(b"x" * 2**20 + part + b"y")
    assert model_hash(file) == hashlib.sha256(part).hexdigest()[:8]
    assert model_hash(Path("")) is None and model_hash(tmp_path) is None and model_hash(tmp_path / "gone") is None
