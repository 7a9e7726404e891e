"""What the measures share: luma, means over tiles, steps between neighbours, rounding. H height, W width in pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL_PX = 768  # choice: what is measured of composition alone is measured of a picture that was halved to below this
TILE_PX = 128  # choice: larger than a face's features, smaller than a sky
DIGITS = 5  # so that the last bits of one machine's vector instructions do not change a content digest


def luma(rgb_HWC: NDArray[Any]) -> NDArray[Any]:
    """uint8 HW, Rec. 601. Raises ValueError for what is not uint8 HWC."""
    import cv2

    if rgb_HWC.dtype != np.uint8 or rgb_HWC.ndim != 3 or rgb_HWC.shape[2] != 3 or 0 in rgb_HWC.shape:
        raise ValueError(f"a picture of shape {rgb_HWC.shape} and type {rgb_HWC.dtype} came in, expected uint8 height x width x 3")
    grey_HW: NDArray[Any] = cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY)
    return grey_HW


def halved(grey_HW: NDArray[Any], below_px: int) -> NDArray[Any]:
    """Halved until its shorter side is below this: four times as fast as at once, and the first steps serve several measures."""
    import cv2

    while min(grey_HW.shape) >= below_px:
        height, width = (side // 2 for side in grey_HW.shape)
        grey_HW = cv2.resize(grey_HW[:2 * height, :2 * width], (width, height), interpolation=cv2.INTER_AREA)
    return grey_HW


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How much neighbouring pixels differ, in grey levels 0..255, uint8."""

    across_HW: NDArray[Any]  # of every second row; width - 1 columns; column x lies between the pixels x and x + 1
    down_HW: NDArray[Any]  # height - 1 rows


def steps(grey_HW: NDArray[Any]) -> Steps:
    """Absolute differences of neighbours; empty where a picture is one pixel wide or high."""
    import cv2

    height, width = grey_HW.shape
    empty = np.zeros((0, 0), np.uint8)
    return Steps(across_HW=cv2.absdiff(grey_HW[::2, 1:], grey_HW[::2, :-1]) if width > 1 else empty,
                 down_HW=cv2.absdiff(grey_HW[1:], grey_HW[:-1]) if height > 1 else empty)


def column_sums(values_RX: NDArray[Any], tiles: int, *, squared: bool = False) -> NDArray[Any]:
    """(tiles, W): sums over the rows of what rows.Rows holds, int16 or float32, of the values or of their squares."""
    import cv2

    how = cv2.REDUCE_SUM2 if squared else cv2.REDUCE_SUM
    return np.asarray(cv2.reduce(values_RX, 0, how, dtype=cv2.CV_32F)).reshape(tiles, -1)[:, 1:-1]


def tile_means(sums: Sequence[NDArray[Any]], rows: int, tile_px: int = TILE_PX) -> NDArray[Any]:
    """float64 (tiles down, tiles across): means of whole tiles from the `column_sums` of their rows, `rows` each; what is narrower than
    a tile is one tile."""
    sums_TW = np.concatenate(sums).astype(np.float64)
    wide = min(sums_TW.shape[1], tile_px)
    columns = sums_TW.shape[1] // wide
    mean: NDArray[Any] = sums_TW[:, :columns * wide].reshape(len(sums_TW), columns, wide).sum(axis=2) / (rows * wide)
    return mean


def tile_variances(groups: Iterable[tuple[NDArray[Any], int]]) -> NDArray[Any]:
    """float64 (tiles down, tiles across): the variance in each whole tile of (what a filter made of rows.Rows, its rows of tiles)."""
    sums, squares, rows = [], [], 1
    for values_RX, tiles in groups:
        sums.append(column_sums(values_RX, tiles))
        squares.append(column_sums(values_RX, tiles, squared=True))
        rows = len(values_RX)
    return np.maximum(tile_means(squares, rows) - tile_means(sums, rows) ** 2, 0.0)


def percentile(values: NDArray[Any], percent: float) -> float:
    """As np.percentile, of float64, to the last bit and in a tenth of its time."""
    ordered = np.sort(values, axis=None)
    place = percent / 100 * (len(ordered) - 1)
    low = int(place)
    below, above = float(ordered[low]), float(ordered[min(low + 1, len(ordered) - 1)])
    share = place - low
    return below + (above - below) * share if share < 0.5 else above - (above - below) * (1 - share)


def rounded(value: Any) -> float:
    """A number with DIGITS significant digits."""
    return float(f"{float(value):.{DIGITS}g}")
