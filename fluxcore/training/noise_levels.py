"""How noise levels (sigma, 0 = picture, 1 = noise) are drawn, as sd-scripts' `--timestep_sampling` draws them."""

from __future__ import annotations

import math

import torch


def draw_sigmas(
    normal: torch.Tensor, method: str, *, sigmoid_scale: float = 1.0, shift: float = 3.1582, mu: float = 0.0
) -> torch.Tensor:
    """Noise levels (B,) in 0..1 from normal numbers (B,).

    sigmoid: s = sigmoid(scale * N). shift: s k / (1 + (k - 1) s). flux_shift: the same with k = exp(mu), the
    family's `training_mu` for the picture's size.
    Raises ValueError for another method.
    """
    s = torch.sigmoid(sigmoid_scale * normal)
    if method == "sigmoid":
        return s
    if method == "shift":
        return _shifted(s, shift)
    if method == "flux_shift":
        return _shifted(s, math.exp(mu))
    raise ValueError(f"unknown timestep sampling {method!r}")


def _shifted(s: torch.Tensor, k: float) -> torch.Tensor:
    return s * k / (1 + (k - 1) * s)
