"""How noise levels (sigma, 0 = picture, 1 = noise) are drawn, as sd-scripts' `--timestep_sampling` draws them."""

from __future__ import annotations

import math

import torch


def draw_sigmas(
    normal: torch.Tensor,
    method: str,
    *,
    sigmoid_scale: float = 1.0,
    shift: float = 3.1582,
    mu: float = 0.0,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    mode_scale: float = 1.29,
) -> torch.Tensor:
    """Noise levels (B,) in 0..1 from normal numbers (B,).

    sigmoid: s = sigmoid(scale * N). shift: s k / (1 + (k - 1) s). flux_shift: the same with k = exp(mu), the
    family's `training_mu` for the picture's size. uniform: u, N's place in its distribution. logit_normal:
    sigmoid(mean + std * N); mode: 1 - u - scale (cos²(pi u / 2) - 1 + u), both from the paper on Stable Diffusion 3
    (Esser et al. 2024, section 3.1). Raises ValueError for another method.
    """
    if method == "uniform":
        return torch.special.ndtr(normal)
    if method == "logit_normal":
        return torch.sigmoid(logit_mean + logit_std * normal)
    if method == "mode":
        u = torch.special.ndtr(normal)
        return 1 - u - mode_scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
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
