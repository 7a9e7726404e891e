"""What the measures share: luma, halves of tiles, means over tiles, steps between neighbours, rounding. H height, W width in pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL_PX = 768  # choice: what is measured of composition alone is measured of a picture that was halved to below this
TILE_PX = 128  # choice: larger than a face's features, smaller than a sky
HALF_TILE_PX = TILE_PX // 2  # choice: the upper half of a tile tells as much of it in half of the time
HALVES_BYTES = 1 << 19  # choice: of the picture, filtered at a time: with what comes of it it stays in the cache
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


def upper_halves(grey_HW: NDArray[Any]) -> list[NDArray[Any]]:
    """The upper half of each row of tiles, several of them side by side: uint8 (R + 2, T, W + 2), R rows of T of them, W pixels wide.

    The row above, the row below and the columns beside are those of the picture, or reflected as OpenCV does it. One call of a filter then
    serves many tiles, within the cache, and what leaks from one row of tiles to the next stays in the columns beside. Rows below the last
    whole tile are left out; a picture lower than a tile is one tile.
    """
    import cv2

    height, width = grey_HW.shape
    tall = min(height, TILE_PX)
    rows = min(tall, HALF_TILE_PX)
    tops = range(0, height - tall + 1, tall)
    some = max(HALVES_BYTES // (rows * width), 1)
    groups = []
    for first in range(0, len(tops), some):
        group_RTW = np.empty((rows + 2, len(tops[first:first + some]), width + 2), np.uint8)
        for place, top in enumerate(tops[first:first + some]):
            low, high = max(top - 1, 0), min(top + rows + 1, height)
            beyond = low - top + 1, top + rows + 1 - high, 1, 1  # above, below, left, right
            cv2.copyMakeBorder(grey_HW[low:high], *beyond, cv2.BORDER_REFLECT_101, dst=group_RTW[:, place])
        groups.append(group_RTW)
    return groups


def side_by_side(group_RTW: NDArray[Any]) -> NDArray[Any]:
    """A group of `upper_halves` as one wide picture."""
    return group_RTW.reshape(len(group_RTW), -1)


def column_sums(values_RX: NDArray[Any], tiles: int, *, squared: bool = False) -> NDArray[Any]:
    """(tiles, W): sums over the rows of one of `side_by_side`, uint8, int16 or float32, of the values or of their squares."""
    import cv2

    how, kind = (cv2.REDUCE_SUM2, cv2.CV_32F) if squared else (cv2.REDUCE_SUM, cv2.CV_32S if values_RX.dtype == np.uint8 else cv2.CV_32F)
    return np.asarray(cv2.reduce(values_RX, 0, how, dtype=kind)).reshape(tiles, -1)[:, 1:-1]


def tile_means(sums: Sequence[NDArray[Any]], rows: int, tile_px: int = TILE_PX) -> NDArray[Any]:
    """float64 (tiles down, tiles across): means of whole tiles from the `column_sums` of their rows, `rows` each; what is narrower than
    a tile is one tile."""
    sums_TW = np.concatenate(sums).astype(np.float64)
    wide = min(sums_TW.shape[1], tile_px)
    columns = sums_TW.shape[1] // wide
    mean: NDArray[Any] = sums_TW[:, :columns * wide].reshape(len(sums_TW), columns, wide).sum(axis=2) / (rows * wide)
    return mean


def tile_variances(groups: Iterable[tuple[NDArray[Any], int]]) -> NDArray[Any]:
    """float64 (tiles down, tiles across): the variance in each whole tile of (what a filter made of `side_by_side`, its tiles)."""
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
