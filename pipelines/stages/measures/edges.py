"""Over-sharpening and ringing: what pixels beside strong edges do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.measures.tiles import rounded

LINES = 48  # choice: rows, and columns, that are searched
STEP = 24  # choice: grey levels over two pixels
CONTRAST = 40  # choice: grey levels from plateau to plateau
REACH_PX = 8  # choice: halos of sharpening reach 1 to 4 px, the plateaus are read at 5 to 8
APART_PX = 6  # choice: of edges nearer to each other the steeper one counts
LEAST, MOST = 20, 500  # choice: fewer edges tell nothing, more (in each direction) cost time


def overshoot(grey_HW: NDArray[Any]) -> float | None:
    """How far the pixels beside strong edges go beyond the plateaus behind them, as a share of the edges' contrast, on average.

    None where fewer than 20 edges are found. Sharpening raises it (halos), so does ringing; blur lowers it; fine texture is read as
    overshoot too. Our own definition; photographs lie at 0.05 to 0.3.
    """
    import cv2

    height, width = (max(side // LINES, 1) for side in grey_HW.shape)
    both = grey_HW[height // 2::height], cv2.transpose(grey_HW[:, width // 2::width])
    profiles = _profiles([lines_NW for lines_NW in both if lines_NW.size and lines_NW.shape[1] > 2 * REACH_PX + 2])
    low, high = _twice_the_median(profiles[:4]), _twice_the_median(profiles[-4:])
    contrast = high - low
    steep = contrast >= 2 * CONTRAST
    if np.count_nonzero(steep) < LEAST:
        return None
    over = 2 * profiles[REACH_PX + 1:REACH_PX + 5].max(axis=0) - high
    under = low - 2 * profiles[REACH_PX - 4:REACH_PX].min(axis=0)
    shares = (over + under)[steep].astype(np.float32) / (2 * contrast[steep])
    return rounded(np.mean(np.clip(shares, -0.5, 1.0), dtype=np.float64))


def _profiles(lines: list[NDArray[Any]]) -> NDArray[Any]:
    """int16 (2 * REACH_PX + 1, edges): the pixels around the steepest places of lines (each N x W), turned so that all of them rise."""
    import cv2

    size = 2 * REACH_PX + 1
    if not lines:
        return np.zeros((size, 0), np.int16)
    line = np.concatenate([lines_NW.ravel() for lines_NW in lines])  # measured: one call of each filter for all of them
    step = cv2.absdiff(line[None, 2:], line[None, :-2]).ravel()  # at x: about the pixel x + 1
    found = np.zeros(len(line), np.bool_)
    np.equal(step[APART_PX:-APART_PX], _largest(step), out=found[APART_PX + 1:-APART_PX - 1])
    found[1:-1] &= step >= STEP
    at = np.concatenate(list(_thinned(found, lines)))
    windows = np.ndarray(len(line) - size + 1, f"V{size}", line.data, strides=(1,))  # overlapping ones, copied as wholes
    profiles = windows[at - REACH_PX].view(np.uint8).reshape(-1, size).T.astype(np.int16, order="C")
    profiles *= np.where(profiles[REACH_PX + 1] < profiles[REACH_PX - 1], np.int16(-1), np.int16(1))
    return profiles


def _largest(step: NDArray[Any]) -> NDArray[Any]:
    """At each place the largest within APART_PX; those nearer to an end are left out."""
    two = np.maximum(step[1:], step[:-1])  # measured: by doubling in a sixth of the time of cv2.dilate
    four = np.maximum(two[2:], two[:-2])
    eight = np.maximum(four[4:], four[:-4])
    rest = 2 * APART_PX + 1 - 8
    return np.asarray(np.maximum(eight[rest:], eight[:-rest]))


def _thinned(found: NDArray[Any], lines: list[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Of the places found, for each direction at most MOST that are not too near to a line's ends."""
    first = 0
    for lines_NW in lines:
        some_NW = found[first:first + lines_NW.size].reshape(lines_NW.shape)
        some_NW[:, :REACH_PX] = some_NW[:, -REACH_PX:] = False
        places = np.flatnonzero(some_NW)
        yield places[::max(-(-len(places) // MOST), 1)] + first
        first += lines_NW.size


def _twice_the_median(values_4N: NDArray[Any]) -> NDArray[Any]:
    one, two, three, four = values_4N
    lower, upper = np.minimum(one, two), np.maximum(one, two)
    return np.asarray(np.maximum(lower, np.minimum(three, four)) + np.minimum(upper, np.maximum(three, four)))
