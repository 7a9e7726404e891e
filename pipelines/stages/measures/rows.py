"""Rows that stand for tiles, and the halves of separable filters: down, of a row and its neighbours, and along the rows.

The Laplacian, Immerkaer's kernel and Sobel's gradient are sums and products of these few, of whole numbers that fit into int16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.measures.tiles import TILE_PX

HALF_TILE_PX = TILE_PX // 2  # choice: the upper half of a tile tells as much of it
EVERY = 3  # choice: of its rows; not 2 or 4: blocks of compression are 8 high, and no row of theirs may be preferred
GROUP_BYTES = 1 << 19  # measured: of the picture, filtered at a time


@dataclass(frozen=True, kw_only=True)
class Rows:
    """int16 (R, X): R rows; the columns are those of T rows of tiles one after another, each with one more on either side."""

    here_RX: NDArray[Any]
    curve_RX: NDArray[Any]  # 1, -2, 1, from the row above to the row below
    smooth_RX: NDArray[Any]  # 1, 2, 1
    slope_RX: NDArray[Any]  # -1, 0, 1
    tiles: int  # T


def some_rows(grey_HW: NDArray[Any]) -> list[Rows]:
    """Every third row of the upper half of each tile, in groups that stay in the cache.

    The row above, the row below and the columns beside are those of the picture, or reflected as OpenCV does it. One call of a filter then
    serves many tiles, and what leaks from one row of tiles to the next stays in the columns beside. Rows below the last whole tile are
    left out; a picture lower than a tile is one tile.
    """
    import cv2

    height, width = grey_HW.shape
    tall = min(height, TILE_PX)
    rows = min(tall, HALF_TILE_PX)
    tops = range(0, height - tall + 1, tall)
    some = max(GROUP_BYTES // (rows * width), 1)
    groups = []
    for first in range(0, len(tops), some):
        group_RTW = np.empty((rows + 2, len(tops[first:first + some]), width + 2), np.uint8)
        for place, top in enumerate(tops[first:first + some]):
            low, high = max(top - 1, 0), min(top + rows + 1, height)
            beyond = low - top + 1, top + rows + 1 - high, 1, 1  # above, below, left, right
            cv2.copyMakeBorder(grey_HW[low:high], *beyond, cv2.BORDER_REFLECT_101, dst=group_RTW[:, place])
        groups.append(_filtered(group_RTW.reshape(rows + 2, -1), group_RTW.shape[1]))
    return groups


def _filtered(grey_RX: NDArray[Any], tiles: int) -> Rows:
    above_RX, here_RX, below_RX = (grey_RX[i:len(grey_RX) - 2 + i:EVERY].astype(np.int16) for i in range(3))
    slope_RX = below_RX - above_RX
    above_RX += below_RX  # measured: in place in less time
    twice_RX = np.add(here_RX, here_RX, out=below_RX)
    curve_RX = above_RX - twice_RX
    return Rows(here_RX=here_RX, curve_RX=curve_RX, smooth_RX=np.add(above_RX, twice_RX, out=above_RX), slope_RX=slope_RX, tiles=tiles)


def second_difference(values_RX: NDArray[Any]) -> NDArray[Any]:
    """1, -2, 1 along the rows; the outermost columns, which lie beside tiles, are left undefined."""
    found_RX = np.empty_like(values_RX)
    line = values_RX.ravel()  # measured: one line takes half of the time
    step = line[1:] - line[:-1]
    np.subtract(step[1:], step[:-1], out=found_RX.ravel()[1:-1])
    return found_RX


def first_difference(values_RX: NDArray[Any]) -> NDArray[Any]:
    """-1, 0, 1 along the rows, else as `second_difference`."""
    found_RX = np.empty_like(values_RX)
    line = values_RX.ravel()
    np.subtract(line[2:], line[:-2], out=found_RX.ravel()[1:-1])
    return found_RX


def smoothed(values_RX: NDArray[Any]) -> NDArray[Any]:
    """1, 2, 1 along the rows, else as `second_difference`."""
    found_RX = np.empty_like(values_RX)
    line = values_RX.ravel()
    pairs = line[1:] + line[:-1]
    np.add(pairs[1:], pairs[:-1], out=found_RX.ravel()[1:-1])
    return found_RX
