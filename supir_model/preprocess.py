"""From a picture of any size to the size that the network works at, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from supir_model.images import rgb_to_model


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Pixels: `net_*` what the network works at, `out_*` what is given back."""

    net_height: int
    net_width: int
    out_height: int
    out_width: int


def plan_sizes(
    height: int, width: int, *, upscale: float = 1.0, min_size_px: int = 1024, multiple_px: int = 64, fixed_side_px: int | None = None
) -> Sizes:
    """Sizes for a picture of `height` x `width` pixels, by the rule of the released command line.

    The result is `upscale` times the input. The network sees it with a short side of at least `min_size_px` and both sides
    rounded to a multiple of `multiple_px` (halves to even), so the aspect may change slightly; nothing is cropped.
    `fixed_side_px` sets the short side of both, whatever `upscale` says.
    """
    if min(height, width) < 1 or upscale <= 0:
        raise ValueError(f"a picture of {height} x {width} pixels times {upscale} has no size")
    h, w = height * upscale, width * upscale
    out_height, out_width = round(h), round(w)
    if min(h, w) < min_size_px:
        grow = min_size_px / min(h, w)
        h, w = h * grow, w * grow
    if fixed_side_px is not None:
        shrink = fixed_side_px / min(h, w)
        h, w = h * shrink, w * shrink
        out_height, out_width = round(h), round(w)
    net_height, net_width = (max(1, round(side / multiple_px)) * multiple_px for side in (h, w))
    return Sizes(net_height=net_height, net_width=net_width, out_height=out_height, out_width=out_width)


def to_network(rgb_HWC: np.ndarray, sizes: Sizes) -> Tensor:
    """uint8 picture -> x_1CHW in [-1, 1] at the working size (Pillow's bicubic, which averages when it shrinks).

    Rows first, then columns, as Pillow did until version 12: newer ones choose, and 8 bits in between make two levels of it.
    """
    rows = Image.fromarray(rgb_HWC).resize((sizes.net_width, len(rgb_HWC)), Image.Resampling.BICUBIC)
    both = rows.resize((sizes.net_width, sizes.net_height), Image.Resampling.BICUBIC)
    return rgb_to_model(np.array(both))


def to_output_size(x_BCHW: Tensor, sizes: Sizes) -> Tensor:
    """x_BCHW at the given-back size, in fp32, not clipped."""
    size = (sizes.out_height, sizes.out_width)
    return F.interpolate(x_BCHW.float(), size=size, mode="bicubic", align_corners=False)


def from_network(x_BCHW: Tensor, sizes: Sizes) -> np.ndarray:
    """x_BCHW in about [-1, 1] -> uint8 pictures [B, H, W, 3] at the given-back size, truncated as the released code does."""
    levels_BCHW = (to_output_size(x_BCHW, sizes) * 127.5).add_(127.5).clamp_(0, 255).to(torch.uint8)  # in place: pictures may be large
    return levels_BCHW.permute(0, 2, 3, 1).cpu().numpy()
