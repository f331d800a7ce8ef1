"""How noise levels (sigma, 0 = picture, 1 = noise) are drawn, as sd-scripts' `--timestep_sampling` draws them."""

from __future__ import annotations

import math

import torch


def draw_sigmas(
    normal: torch.Tensor, method: str, *, sigmoid_scale: float = 1.0, shift: float = 3.1582, image_tokens: int = 0
) -> torch.Tensor:
    """Noise levels (B,) in 0..1 from normal numbers (B,).

    sigmoid: s = sigmoid(scale * N). shift: s k / (1 + (k - 1) s). flux_shift: the same with k = exp(mu), mu linear in
    the packed token count (Black Forest Labs' `get_lin_function`: 0.5 at 256 tokens, 1.15 at 4096).
    Raises ValueError for another method.
    """
    s = torch.sigmoid(sigmoid_scale * normal)
    if method == "sigmoid":
        return s
    if method == "shift":
        return _shifted(s, shift)
    if method == "flux_shift":
        return _shifted(s, math.exp(flux_mu(image_tokens)))
    raise ValueError(f"unknown timestep sampling {method!r}")


def flux_mu(image_tokens: int) -> float:
    """FLUX.1-dev's shift for a picture of that many packed tokens, as an exponent."""
    slope = (1.15 - 0.5) / (4096 - 256)
    return 0.5 + slope * (image_tokens - 256)


def _shifted(s: torch.Tensor, k: float) -> torch.Tensor:
    return s * k / (1 + (k - 1) * s)
