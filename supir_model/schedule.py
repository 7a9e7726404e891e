"""Noise levels: SDXL's 1000 discrete ones, the grids a sampler walks, and values that change along sigma."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

SIGMA_MAX = 14.6146  # released code: the constant that sigma is divided by, here and in Algorithm 1 (sigma_T)
TIMESTEPS = 1000  # SDXL
BETA_FIRST, BETA_LAST = 0.00085, 0.012  # SDXL: linear in the square root


class Schedule:
    """S_t = sqrt((1 - abar_t) / abar_t) for t = 0..999, from 0.029 to 14.615. Tensors are fp32 on the CPU."""

    def __init__(self) -> None:
        beta_T = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, TIMESTEPS, dtype=torch.float64) ** 2
        abar_T = torch.cumprod(1 - beta_T, dim=0)
        self.sigma_T = ((1 - abar_T) / abar_T).sqrt().float()

    def sigmas(self, steps: int) -> Tensor:
        """The sampler's grid, [steps + 1], descending from 14.615 and closed by 0. `steps` in 1..999."""
        if not 1 <= steps < TIMESTEPS:
            raise ValueError(f"{steps} steps, expected 1 to {TIMESTEPS - 1}")
        t = torch.linspace(TIMESTEPS - 1, 0, steps + 1, dtype=torch.float64)[:-1].long()
        return torch.cat([self.sigma_T[t], torch.zeros(1)])

    def sigma_of(self, timestep_B: Tensor) -> Tensor:
        """Noise level of each timestep, on the device of `timestep_B`."""
        return self.sigma_T.to(timestep_B.device)[timestep_B]

    def timestep_of(self, sigma_B: Tensor) -> Tensor:
        """The timestep of the nearest noise level; above the largest it is 999 (churn goes there)."""
        return (self.sigma_T.to(sigma_B)[:, None] - sigma_B).abs().argmin(dim=0)


@cache
def sdxl_schedule() -> Schedule:
    """The schedule of SDXL, made once."""
    return Schedule()


def karras(sigmas: Tensor, rho: float = 7.0) -> Tensor:
    """A grid of as many steps between the same ends (Karras et al. 2022, Eq. 5; rho 7), closed by 0."""
    ramp = torch.linspace(0, 1, len(sigmas) - 1)
    first, last = sigmas[0] ** (1 / rho), sigmas[-2] ** (1 / rho)
    return torch.cat([(first + ramp * (last - first)) ** rho, torch.zeros(1)])


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A value linear in sigma: `start` at sigma max, `end` at sigma 0 (released code; not in the paper)."""

    start: float
    end: float

    def at(self, sigma: float) -> float:
        return self.end + (self.start - self.end) * sigma / SIGMA_MAX

    @property
    def constant(self) -> bool:
        return self.start == self.end
