"""The network that predicts noise, as a denoiser D(x, sigma): the one noun that sampler, guidance and tiling speak of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from supir_model.conditioning import Conditions
from supir_model.schedule import Schedule

Denoise = Callable[[Tensor, float, float], Tensor]
"""D(x_BCHW, sigma, control_scale) -> the clean latent that x_BCHW = clean + sigma noise is thought to come from."""

ConditionalDenoise = Callable[[Tensor, Tensor, Conditions, float], Tensor]
"""D(x_BCHW, sigma_B, conditions, control_scale)."""

NoisePredictor = Callable[[Tensor, Tensor, Conditions, float], Tensor]
"""eps(x_BCHW scaled by c_in, timestep_B, conditions, control_scale) -> predicted noise."""


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """D = x - q eps(x / sqrt(q^2 + 1), t): t the timestep of the level nearest to sigma, q that level.

    A sigma above the largest level is clipped to it for the network alone (docs/numerics.md, line 11).
    """

    eps: NoisePredictor
    schedule: Schedule

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, conditions: Conditions, control_scale: float) -> Tensor:
        timestep_B = self.schedule.timestep_of(sigma_B)
        q_B111 = self.schedule.sigma_of(timestep_B).view(-1, 1, 1, 1)
        eps_BCHW = self.eps(scale_in(x_BCHW, q_B111), timestep_B, conditions, control_scale)
        return x_BCHW - q_B111 * eps_BCHW.to(x_BCHW.dtype)


def scale_in(x_BCHW: Tensor, sigma_B111: Tensor) -> Tensor:
    """c_in x: the noisy latent at unit variance, as every network of the project reads it."""
    return x_BCHW / (sigma_B111**2 + 1).sqrt()


def conditioned(denoiser: ConditionalDenoise, conditions: Conditions) -> Denoise:
    """`denoiser` with its conditions fixed, one sigma for the whole batch."""

    def denoise(x_BCHW: Tensor, sigma: float, control_scale: float) -> Tensor:
        sigma_B = torch.full((len(x_BCHW),), sigma, dtype=torch.float32, device=x_BCHW.device)
        return denoiser(x_BCHW, sigma_B, conditions, control_scale)

    return denoise
