"""Classifier-free guidance towards the positive and away from the negative text (Sec. 3.2, "Negative-Quality Samples")."""

from __future__ import annotations

import torch
from torch import Tensor

from supir_model.conditioning import Conditions
from supir_model.denoiser import ConditionalDenoise, Denoise, conditioned
from supir_model.schedule import Ramp


def guided(denoiser: ConditionalDenoise, *, positive: Conditions, negative: Conditions, weight: Ramp) -> Denoise:
    """D = D_neg + g (D_pos - D_neg), both from one call with the batch [negative; positive]; g at the sigma of the call.

    The paper prints z_pos + lambda (z_pos - z_neg) on z_{t-1}: g = 1 + lambda, and as a step is affine in D the two places
    give the same (docs/numerics.md, line 9). A constant g of 1 asks for the positive half alone.
    """
    if weight.constant and weight.end == 1:
        return conditioned(denoiser, positive)
    pair = conditioned(denoiser, Conditions.cat(negative, positive))

    def denoise(x_BCHW: Tensor, sigma: float, control_scale: float) -> Tensor:
        away, towards = pair(torch.cat([x_BCHW, x_BCHW]), sigma, control_scale).chunk(2)
        return combine(away, towards, weight.at(sigma))

    return denoise


def combine(negative: Tensor, positive: Tensor, weight: float) -> Tensor:
    """Two predictions as one: `weight` 0 is the negative one, 1 the positive, more goes beyond it."""
    return negative + weight * (positive - negative)
