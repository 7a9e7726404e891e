"""Degradations: `draw` one picture's numbers, `apply` them. See docs/degradation.md.

    params = [draw("real_esrgan", seed, position, size_px=512) for position in positions]
    x_lq_BCHW = apply(x_unit_BCHW, params)

Drawn per sample from (seed, purpose, position): no pool, no hidden state, nothing that a restart could lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from supir_model.degradation.draws import draw
from supir_model.degradation.operations import degrade, from_levels
from supir_model.degradation.presets import PRESETS, TABLE1
from supir_model.degradation.steps import DegradationParams

if TYPE_CHECKING:
    import torch

__all__ = ["PRESETS", "TABLE1", "DegradationParams", "apply", "apply_rgb", "degrade", "draw"]


def apply(
    x_BCHW: torch.Tensor,
    params: Sequence[DegradationParams],
    device: torch.device | str | None = None,
    *,
    threads: int = 1,
) -> torch.Tensor:
    """Degrades picture b by `params[b]`: float BCHW in [0, 1] -> float32 of the same shape and range, on `device` (default: that of x).

    Computed on the CPU, picture by picture (choice: docs/degradation.md has the cost), so that a picture's LQ is bit-equal in every batch
    and for every number of threads.
    """
    import torch

    if len(params) != len(x_BCHW):
        raise ValueError(f"{len(x_BCHW)} pictures and {len(params)} drawn degradations: draw one for each")
    x_BHWC = x_BCHW.detach().to("cpu", torch.float32).permute(0, 2, 3, 1).contiguous().numpy()
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            lq = list(pool.map(degrade, x_BHWC, params))
    else:
        lq = [degrade(x_HWC, p) for x_HWC, p in zip(x_BHWC, params, strict=True)]
    return torch.from_numpy(np.stack(lq)).permute(0, 3, 1, 2).contiguous().to(device or x_BCHW.device)


def apply_rgb(rgb_HWC: np.ndarray, params: DegradationParams) -> np.ndarray:
    """One picture as uint8 HWC -> its LQ as uint8 HWC; nothing is lost, the LQ lies on 8-bit levels."""
    lq_HWC = degrade(from_levels(rgb_HWC), params)
    return np.rint(lq_HWC * 255.0).astype(np.uint8)
