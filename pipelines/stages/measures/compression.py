"""What compression left: the grid of blocks in the pixels, the quality that a file's own tables tell, and the bits it spent."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.measures.tiles import Steps, rounded

BLOCK_PX = 8  # of JPEG
STEP_MOST = 16  # choice: larger steps are edges of things, whatever their place
VISIBLE = 0.5  # choice: mean grey levels; a grid in a clear sky that is fainter than this counts for less
# ITU-T T.81, Table K.1 (luminance), which libjpeg scales by a quality of 1..100
LUMINANCE_TABLE = (16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87,
                   80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92,
                   95, 98, 112, 100, 103, 99)


def blockiness(of: Steps) -> float:
    """By how much the steps at every eighth place exceed those of the next largest phase: 0 for none, 1 for twice as large.

    Mean of both directions. The phase is searched for, so a crop hides nothing; a resize does. After Wang, Bovik and Evans 2000
    (steps across the boundaries of blocks against the others), with the phase free.
    """
    return rounded((_excess(of.across_HW, 0) + _excess(of.down_HW, 1)) / 2)


def _excess(steps_HW: NDArray[Any], axis: int) -> float:
    import cv2

    if min(steps_HW.shape) < 4 * BLOCK_PX:
        return 0.0
    small_HW = cv2.threshold(steps_HW, STEP_MOST, 0, cv2.THRESH_TRUNC)[1]
    sums = cv2.reduce(small_HW, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
    means = sums[:len(sums) // BLOCK_PX * BLOCK_PX].reshape(-1, BLOCK_PX).mean(axis=0) / steps_HW.shape[axis]
    second, first = np.sort(means)[-2:]
    return float((first - second) / (second + VISIBLE))


def jpeg_quality(luminance_table: Sequence[int] | None) -> float | None:
    """1..100 as libjpeg counts, from the luminance table in a file's header (supir_model.images.ImageInfo); None for what has none.

    The median over coefficients, so that other encoders' tables get the nearest of libjpeg's qualities. Tells of the last encoding
    alone: a poor picture that was saved again at 95 says 95.
    """
    if not luminance_table:
        return None
    free = [100 * step / base for step, base in zip(luminance_table, LUMINANCE_TABLE, strict=True) if step < 255]  # not cut off by libjpeg
    scale = median(free) if free else 5000.0  # percent
    quality = 100 - scale / 2 if scale <= 100 else 5000 / scale  # libjpeg's jpeg_quality_scaling, turned round
    return rounded(min(max(quality, 1), 100))


def bits_per_pixel(size_bytes: int, rgb_HWC: NDArray[Any]) -> float:
    """Bits of the file for each pixel, whatever its format; 24 for no compression."""
    return rounded(8 * size_bytes / (rgb_HWC.shape[0] * rgb_HWC.shape[1]))
