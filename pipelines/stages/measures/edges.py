"""Over-sharpening and ringing: what pixels beside strong edges do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.measures.tiles import rounded

LINES = 48  # choice: rows, and columns, that are searched
STEP = 24  # choice: grey levels over two pixels
CONTRAST = 40  # choice: grey levels from plateau to plateau
REACH_PX = 8  # choice: halos of sharpening reach 1 to 4 px, the plateaus are read at 5 to 8
LEAST, MOST = 20, 500  # choice: fewer edges tell nothing, more (in each direction) cost time


def overshoot(grey_HW: NDArray[Any]) -> float | None:
    """How far the pixels beside strong edges go beyond the plateaus behind them, as a share of the edges' contrast, on average.

    None where fewer than 20 edges are found. Sharpening raises it (halos), so does ringing; blur lowers it; fine texture is read as
    overshoot too. Our own definition; photographs lie at 0.05 to 0.3.
    """
    import cv2

    height, width = (max(side // LINES, 1) for side in grey_HW.shape)
    rows_NW, columns_NW = grey_HW[height // 2::height], cv2.transpose(grey_HW[:, width // 2::width])
    profiles = np.concatenate([_profiles(rows_NW), _profiles(columns_NW)], axis=1)
    low, high = _median_of_four(profiles[:4]), _median_of_four(profiles[-4:])
    contrast = high - low
    steep = contrast >= CONTRAST
    if np.count_nonzero(steep) < LEAST:
        return None
    over = profiles[REACH_PX + 1:REACH_PX + 5].max(axis=0) - high
    under = low - profiles[REACH_PX - 4:REACH_PX].min(axis=0)
    return rounded(np.mean(np.clip((over + under)[steep] / (2 * contrast[steep]), -0.5, 1.0), dtype=np.float64))


def _profiles(lines_NW: NDArray[Any]) -> NDArray[Any]:
    """float32 (2 * REACH_PX + 1, edges): the pixels around the steepest places of lines, turned so that all of them rise."""
    import cv2

    none = np.zeros((2 * REACH_PX + 1, 0), np.float32)
    if len(lines_NW) == 0 or lines_NW.shape[1] <= 2 * REACH_PX + 2:
        return none
    step_NW = cv2.absdiff(lines_NW[:, 2:], lines_NW[:, :-2])  # column x: about the pixel x + 1
    steepest_NW = cv2.compare(step_NW, cv2.dilate(step_NW, np.ones((1, 2 * REACH_PX - 3), np.uint8)), cv2.CMP_GE)
    found_NW = cv2.bitwise_and(steepest_NW, cv2.threshold(step_NW, STEP - 1, 1, cv2.THRESH_BINARY)[1])
    found_NW[:, :REACH_PX - 1] = found_NW[:, found_NW.shape[1] + 1 - REACH_PX:] = 0  # too near to a side
    line, x = np.divmod(np.flatnonzero(found_NW.view(np.bool_)), found_NW.shape[1])
    thinned = slice(None, None, max(-(-len(x) // MOST), 1))
    at = line[thinned] * lines_NW.shape[1] + x[thinned] + 1
    profiles = lines_NW.ravel().take(at + np.arange(-REACH_PX, REACH_PX + 1)[:, None]).astype(np.float32)
    profiles *= np.where(profiles[REACH_PX + 1] < profiles[REACH_PX - 1], np.float32(-1), np.float32(1))
    return profiles


def _median_of_four(values_4N: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(values_4N.sum(axis=0) - values_4N.min(axis=0) - values_4N.max(axis=0)) / 2
