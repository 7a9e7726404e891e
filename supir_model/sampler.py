"""Restoration-guided sampling: Euler steps of EDM whose every prediction is drawn towards the input (Sec. 3.3; Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from supir_model.denoiser import Denoise
from supir_model.schedule import SIGMA_MAX, Ramp

PULL_ENDS_SIGMA = 0.05  # released code: no pull in a step to a sigma at or below it, so that the last step is free
CHURN_MAX = math.sqrt(2) - 1  # Algorithm 1, line 4
FULL_CONTROL = Ramp(start=1.0, end=1.0)

DrawNoise = Callable[[], Tensor]
"""Unit normal noise of the latent's shape, fresh at every call."""

OnStep = Callable[[int, float, Tensor], Tensor]
"""(index of the step that ended, its sigma, latent) -> the latent to go on with."""


@torch.no_grad()
def sample_edm(
    denoise: Denoise,
    noise_BCHW: Tensor,
    sigmas: Tensor,
    *,
    draw: DrawNoise,
    z_center_BCHW: Tensor | None = None,
    restore_cfg: float = -1.0,
    s_churn: float = 0.0,
    s_noise: float = 1.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    control: Ramp = FULL_CONTROL,
    on_step: OnStep | None = None,
) -> Tensor:
    """A clean latent [B, C, H, W] from unit noise, along the descending `sigmas` that end with 0.

    Algorithm 1, with sigma^ = sigma (1 + gamma) and D the guided denoiser:
        x^  = x + s_noise eps sqrt(sigma^^2 - sigma^2)
        D'  = D + (sigma / sigma_T)^tau_r (z_center - D),   D = D(x^, sigma^)
        x   = x^ + (sigma_next - sigma^) (x^ - D') / sigma^
    `restore_cfg` is tau_r; 0 or less leaves D as it is, and then `z_center_BCHW` may be None. `control` is the control
    scale by sigma. Deviations from the print: docs/numerics.md, lines 6 to 8.
    """
    if restore_cfg > 0 and z_center_BCHW is None:
        raise ValueError(f"restore_cfg is {restore_cfg}, which pulls towards z_center_BCHW, and that is None")
    levels = sigmas.tolist()
    churn = min(s_churn / (len(levels) - 1), CHURN_MAX)
    x = noise_BCHW * math.sqrt(1 + levels[0] ** 2)  # docs/numerics.md, line 7
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        sigma_hat = sigma
        if churn > 0 and s_min <= sigma <= s_max:
            sigma_hat = sigma * (1 + churn)
            x = x + draw() * (s_noise * math.sqrt(sigma_hat**2 - sigma**2))
        clean = denoise(x, sigma_hat, control.at(sigma))
        if z_center_BCHW is not None and restore_cfg > 0 and sigma_next > PULL_ENDS_SIGMA:
            clean = pull(clean, z_center_BCHW, (sigma / SIGMA_MAX) ** restore_cfg)
        x = x + (sigma_next - sigma_hat) / sigma_hat * (x - clean)
        x = on_step(step, sigma, x) if on_step else x
    return x


def pull(clean_BCHW: Tensor, z_center_BCHW: Tensor, weight: float) -> Tensor:
    """The prediction moved towards the input: `weight` 0 leaves it, 1 lands on z_center (Algorithm 1, line 7)."""
    return clean_BCHW - weight * (clean_BCHW - z_center_BCHW)


@torch.no_grad()
def sample_dpmpp2m(
    denoise: Denoise,
    noise_BCHW: Tensor,
    sigmas: Tensor,
    *,
    draw: DrawNoise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    control_scale: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """The fast sampler of the released code for distilled priors: DPM-Solver++(2M), stochastic; not in the paper.

    Second order from the second step on. It knows no pull and no churn. As released, the first step adds no noise though its
    coefficients count on some. `sigmas` are best spaced by `schedule.karras`.
    """
    levels = sigmas.tolist()
    x = noise_BCHW * math.sqrt(1 + levels[0] ** 2)
    last_clean, last_sigma = None, math.nan
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        clean = denoise(x, sigma, control_scale)
        if sigma_next == 0:
            return on_step(step, sigma, clean) if on_step else clean
        h = math.log(sigma / sigma_next)
        target = clean
        if last_clean is not None:
            ratio = math.log(last_sigma / sigma) / h
            target = clean + (clean - last_clean) / (2 * ratio)
        x = (sigma_next / sigma) * math.exp(-eta * h) * x - math.expm1(-(1 + eta) * h) * target
        if last_clean is not None and eta > 0:
            x = x + draw() * (s_noise * sigma_next * math.sqrt(-math.expm1(-2 * eta * h)))
        x = on_step(step, sigma, x) if on_step else x
        last_clean, last_sigma = clean, sigma
    return x


class PerImageNoise:
    """Noise of a batch in which every image has its own generator: an image's noise does not depend on its company.

    Drawn on the CPU in fp32, so that every device starts from the same numbers.
    """

    def __init__(self, seeds: Sequence[int], shape_CHW: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape, self._device = tuple(shape_CHW), device

    def __call__(self) -> Tensor:
        """The next unit normal [B, C, H, W]."""
        return torch.stack([torch.randn(self._shape, generator=g) for g in self._generators]).to(self._device)
