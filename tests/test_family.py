"""The seam between training and a family of FLUX: FLUX.1 behind it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fluxcore.models import registry
from fluxcore.models.family import family_of
from fluxcore.models.flux import FLUX_1
from fluxcore.models.loading import load_image_side, locate
from fluxcore.models.registry import BaseModel, ModelNotFound, find_model
from fluxcore.models.single_files import scheduler_for
from fluxcore.training.lora_keys import KEY_NAMES
from tests.bfl_files import bfl_shapes, header_only


def test_every_family_of_the_list_has_its_code() -> None:
    for name in registry.FAMILIES:
        family = family_of(BaseModel(name="m", title="m", family=name))
        assert family.name == name and family.key_names in KEY_NAMES
    with pytest.raises(ModelNotFound, match="which FluxGym can't train"):
        family_of(BaseModel(name="m", title="m", family="sdxl"))


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_image_side(locate(find_model("flux-mini")), torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (1024, 1024), (512, 768)])
def test_devs_training_and_sampling_shift_alike_and_schnells_sampler_not_at_all(
    pipeline: Any, tmp_path: Any, width: int, height: int
) -> None:
    tokens = (width // 16) * (height // 16)
    mu = FLUX_1.sampling_mu(pipeline, tokens, 20)
    assert mu == pytest.approx(FLUX_1.training_mu(tokens))
    pipeline.scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=mu)
    k = torch.tensor(mu).exp()
    assert pipeline.scheduler.sigmas[1] == pytest.approx(float(k * 0.5 / (1 + (k - 1) * 0.5)))  # as draw_sigmas shifts
    path = header_only(tmp_path / "schnell.sft", bfl_shapes(1, 1, guidance=False))
    pipeline.scheduler, dev = scheduler_for(path), pipeline.scheduler
    try:
        assert FLUX_1.sampling_mu(pipeline, tokens, 20) is None
    finally:
        pipeline.scheduler = dev


def test_the_grid_counts_the_tokens_that_packing_makes() -> None:
    latents = torch.randn(2, 16, 6, 10)
    rows, columns = FLUX_1.grid(latents)
    assert (rows, columns) == (3, 5) and FLUX_1.pack(latents).shape == (2, rows * columns, 64)


def test_a_model_without_a_guidance_embedding_is_given_none(pipeline: Any) -> None:
    seen: list[Any] = []

    class Schnell:
        config = type("Config", (), {"guidance_embeds": False})

        def __call__(self, **given: Any) -> tuple[torch.Tensor]:
            seen.append(given["guidance"])
            return (given["hidden_states"],)

    from fluxcore.models.family import PromptBatch

    prompts = PromptBatch(torch.zeros(1, 8), torch.zeros(1, 3, 8))
    holder = type("Holder", (), {"transformer": Schnell()})()
    FLUX_1.predict(holder, torch.zeros(1, 4, 64), torch.tensor([0.5]), prompts, 3.5, (2, 2))
    assert seen == [None]
