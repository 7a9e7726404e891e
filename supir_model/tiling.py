"""Images larger than the network: denoise in overlapping windows and blend. Released code; not in the paper.

A sampler's step is affine in the prediction D, so blending D here and blending whole steps, as the released code does, give
the same; the sampler itself stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from supir_model.denoiser import Denoise

VARIANCE = 0.01  # released code: of the Gaussian weight, in units of the tile's side


class Window(NamedTuple):
    """A rectangle of the latent, in latent pixels."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW[:, :, self.top : self.top + self.height, self.left : self.left + self.width]


def windows(height: int, width: int, *, tile: int, stride: int) -> list[Window]:
    """Windows of side `tile` at multiples of `stride`, the last flush with the edge; an axis shorter than a tile has one."""
    tops, lefts = _starts(height, tile, stride), _starts(width, tile, stride)
    return [Window(top, left, min(tile, height), min(tile, width)) for top in tops for left in lefts]


def tiled(denoiser_for: Callable[[Window], Denoise], places: Sequence[Window]) -> Denoise:
    """One denoiser from a denoiser a window: predictions averaged with Gaussian weights. Windows may carry their own prompt."""
    denoisers = [denoiser_for(place) for place in places]

    def denoise(x_BCHW: Tensor, sigma: float, control_scale: float) -> Tensor:
        total, weight = torch.zeros_like(x_BCHW), torch.zeros_like(x_BCHW[:1, :1])
        for place, denoise_window in zip(places, denoisers, strict=True):
            w_HW = gaussian(place.height, place.width).to(x_BCHW)
            total_view, weight_view = place.crop(total), place.crop(weight)
            total_view += w_HW * denoise_window(place.crop(x_BCHW), sigma, control_scale)
            weight_view += w_HW
        return total / weight

    return denoise


def gaussian(height: int, width: int) -> Tensor:
    """Weights of a window, [height, width] float64. As released, the vertical centre lies half a pixel low."""
    return torch.outer(_bell(height, height / 2), _bell(width, (width - 1) / 2))


def _bell(length: int, centre: float) -> Tensor:
    distance = (torch.arange(length, dtype=torch.float64) - centre) / length
    return torch.exp(-(distance**2) / (2 * VARIANCE)) / math.sqrt(2 * math.pi * VARIANCE)


def _starts(length: int, tile: int, stride: int) -> list[int]:
    if not 0 < stride <= tile:
        raise ValueError(f"tile stride {stride}, expected 1 to the tile's side ({tile}): a wider one leaves gaps")
    return [*range(0, max(length - tile, 0), stride), max(length - tile, 0)]
