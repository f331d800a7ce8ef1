"""What is minimised: how far the model's velocity is from the true one, and how much each noise level counts.

Names and formulas are sd-scripts' (`loss_type`, `huber_c`, `weighting_scheme`), so that a config means the same there.
"""

from __future__ import annotations

import math

import torch

LEAST_SIGMA = 1e-3
"""Noise levels below it weigh as it does: the inverse square of zero is no weight."""


def sample_losses(velocity: torch.Tensor, target: torch.Tensor, loss_type: str, huber_c: float) -> torch.Tensor:
    """The loss of each sample (B,) from velocities (B, N, C), in the target's precision.

    l2: the squared error. huber: 2c (sqrt(e² + c²) - c), like l2 near zero and growing linearly beyond c; smooth_l1:
    2 (sqrt(e² + c²) - c), the same divided by c. Raises ValueError for another type.
    """
    error = velocity.to(target.dtype) - target
    if loss_type == "l2":
        return error.square().mean(dim=(1, 2))
    beyond = 2 * ((error.square() + huber_c**2).sqrt() - huber_c)
    if loss_type == "huber":
        return (huber_c * beyond).mean(dim=(1, 2))
    if loss_type == "smooth_l1":
        return beyond.mean(dim=(1, 2))
    raise ValueError(f"unknown loss type {loss_type!r}")


def sigma_weights(sigma: torch.Tensor, scheme: str) -> torch.Tensor:
    """How much the loss at each noise level (B,) counts: none: 1; sigma_sqrt: 1 / sigma²; cosmap: the paper's on SD3.

    cosmap: 2 / (pi (1 - 2 sigma + 2 sigma²)) (Esser et al. 2024, section 3.1). Raises ValueError for another scheme.
    """
    if scheme == "none":
        return torch.ones_like(sigma)
    if scheme == "sigma_sqrt":
        return sigma.clamp(min=LEAST_SIGMA) ** -2
    if scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    raise ValueError(f"unknown weighting scheme {scheme!r}")
