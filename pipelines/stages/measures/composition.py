"""What is no photograph, or not only one: borders, seams of collages and windows, areas of one exact colour."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.measures.tiles import Steps, rounded

BAR_LEVELS = 12  # choice: grey levels within a bar, which compression disturbs
BAR_EDGE = 24  # choice: grey levels between a bar and the picture beside it
BAR_SHARE = 0.5  # choice: of the line beside a bar that must differ so; a night sky ends gradually
BAR_LINES = 32  # choice: looked at a time
BAR_BLUR_PX = 8  # choice: the picture begins within a block of compression
SEAM_STEP = 10  # choice: grey levels from one pixel to the next
SEAM_THIN_PX = 3  # choice: a seam is one step; texture goes on beside it
SEAM_MARGIN = 0.03  # choice: at the sides of a picture lie frames, which border_px measures


def border_px(grey_HW: NDArray[Any]) -> float:
    """Width in pixels of the widest bar of one tone along a side (letterboxes, frames); 0 for none."""
    columns_WH = grey_HW.T
    return float(max(_bar(lines) for lines in (grey_HW, grey_HW[::-1], columns_WH, columns_WH[::-1])))


def _bar(lines_NW: NDArray[Any]) -> int:
    """How many of the first lines are one tone, if what follows differs at once."""
    if int(lines_NW[0].max()) - int(lines_NW[0].min()) > 2 * BAR_LEVELS:
        return 0
    level = float(np.median(lines_NW[0]))
    most = len(lines_NW) // 2
    count = 0
    while count < most:
        some_NW = lines_NW[count:min(count + BAR_LINES, most)]
        is_tone_N = (level - some_NW.min(axis=1) <= BAR_LEVELS) & (some_NW.max(axis=1) - level <= BAR_LEVELS)
        count += len(is_tone_N) if is_tone_N.all() else int(is_tone_N.argmin())
        if not is_tone_N.all():
            break
    if not 0 < count < most:
        return 0
    beyond_NW = np.abs(lines_NW[count:count + BAR_BLUR_PX].astype(np.int16) - level) > BAR_EDGE
    return count if beyond_NW.mean(axis=1).max() >= BAR_SHARE else 0


def seam(of: Steps) -> float:
    """The largest share (0..1) of a row's width or a column's height at which the picture steps there, and not 3 px beside it.

    Collages, screenshots and wide frames have straight seams from side to side: 0.7 to 1. Buildings reach 0.5, a shop front 0.7.
    """
    return rounded(max(_line(of.across_HW, 0), _line(of.down_HW, 1)))


def _line(steps_HW: NDArray[Any], axis: int) -> float:
    import cv2

    if min(steps_HW.shape) < 32:
        return 0.0
    steep_HW = cv2.threshold(steps_HW, SEAM_STEP, 1, cv2.THRESH_BINARY)[1]
    shares = cv2.reduce(steep_HW, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() / steps_HW.shape[axis]
    beside = np.maximum(shares[:-2 * SEAM_THIN_PX], shares[2 * SEAM_THIN_PX:])
    thin = shares[SEAM_THIN_PX:-SEAM_THIN_PX] - beside
    margin = max(round(len(shares) * SEAM_MARGIN) - SEAM_THIN_PX, 0)
    return float(max(thin[margin:len(thin) - margin].max(), 0.0))


def repeats(of: Steps) -> float:
    """The share of pixels (0..1) that equal their right neighbour: noise lowers it, drawings and windows reach 0.8 and more.

    Photographs: 0.03 to 0.8, the higher the more they were smoothed and compressed.
    """
    import cv2

    return rounded(1 - cv2.countNonZero(of.across_HW) / of.across_HW.size) if of.across_HW.size else 0.0
