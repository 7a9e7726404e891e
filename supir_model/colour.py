"""Gives a result the colours of the stage-1 image. Released code; not in the paper. Any float range, BCHW, before clipping."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 5  # released code: dilations 1, 2, 4, 8, 16
REACH = 2**LEVELS - 1  # rows that the low pass sees above and below
BAND_ROWS = 1024  # choice: the working size of most pictures is one band
VARIANCE_FLOOR = 1e-5  # released code

ColourFix = Literal["wavelet", "adain", "none"]


def fix_colour(kind: ColourFix, content_BCHW: Tensor, style_BCHW: Tensor) -> Tensor:
    """`content_BCHW` with the colours of `style_BCHW`, an image of the same size, by the named method."""
    if content_BCHW.shape != style_BCHW.shape:
        raise ValueError(f"result {tuple(content_BCHW.shape)} and stage-1 image {tuple(style_BCHW.shape)} differ in size")
    if kind == "none":
        return content_BCHW
    return {"wavelet": wavelet, "adain": adain}[kind](content_BCHW, style_BCHW)


def wavelet(content_BCHW: Tensor, style_BCHW: Tensor) -> Tensor:
    """High frequencies of the content, low frequencies of the style.

    Rows go in bands, each read with as many rows around it as the low pass reaches, so that a large picture needs little more
    memory than its result.
    """
    out_BCHW = torch.empty_like(content_BCHW)
    height = content_BCHW.shape[-2]
    for start in range(0, height, BAND_ROWS):
        top, stop = max(start - REACH, 0), min(start + BAND_ROWS, height)
        content, style = (x[:, :, top : min(stop + REACH, height)] for x in (content_BCHW, style_BCHW))
        fixed = content - low_frequencies(content) + low_frequencies(style)
        out_BCHW[:, :, start:stop] = fixed[:, :, start - top : stop - top]
    return out_BCHW


def adain(content_BCHW: Tensor, style_BCHW: Tensor) -> Tensor:
    """Mean and standard deviation of each channel of each image taken from the style."""
    (mean, std), (style_mean, style_std) = _statistics(content_BCHW), _statistics(style_BCHW)
    return (content_BCHW - mean) / std * style_std + style_mean


def low_frequencies(x_BCHW: Tensor) -> Tensor:
    """The a-trous low pass: `LEVELS` binomial 3x3 kernels of doubling dilation."""
    for level in range(LEVELS):
        x_BCHW = blur(x_BCHW, 2**level)
    return x_BCHW


def blur(x_BCHW: Tensor, radius: int) -> Tensor:
    """[1 2 1] x [1 2 1] / 16 with its taps `radius` apart; edges repeated."""
    channels = x_BCHW.shape[1]
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=x_BCHW.dtype, device=x_BCHW.device)
    kernel = torch.outer(taps, taps).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(x_BCHW, (radius,) * 4, mode="replicate"), kernel, groups=channels, dilation=radius)


def _statistics(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    mean = x_BCHW.mean(dim=(2, 3), keepdim=True)
    return mean, (x_BCHW.var(dim=(2, 3), keepdim=True, correction=1) + VARIANCE_FLOOR).sqrt()
