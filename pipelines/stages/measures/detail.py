"""How much detail there is: sharpness, flatness, noise. Luma at native resolution: a blurred photograph that is scaled down looks sharp."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.measures.tiles import column_sums, percentile, rounded, side_by_side, tile_means, tile_variances

SHARPNESS_PERCENTILE = 75  # choice: a portrait before a soft background is sharp where it matters
FLAT_VARIANCE = 10.0  # measured: gradients of clear skies, plain walls and black lie below, of blurred things still above
NOISE_TILE_PX = 32  # choice: small enough that most photographs hold some without texture; the first row of them in each of tiles
NOISE_PERCENTILE = 10  # choice: those tiles
NOISE_KERNEL = np.array([1, -2, 1], np.float32)  # Immerkaer 1996, eq. 2: its outer product with itself
NOISE_SCALE = np.sqrt(np.pi / 2) / 6  # Immerkaer 1996, eq. 4: from the mean magnitude to a standard deviation
EXPOSED = (12, 243)  # choice: in tiles that are darker or brighter on average noise is cut off
Halves = list[NDArray[Any]]  # tiles.upper_halves


def laplacian_tiles(halves: Halves) -> NDArray[Any]:
    """Variance of the Laplacian in the upper half of each tile, float64 (rows, columns)."""
    import cv2

    return tile_variances((cv2.Laplacian(side_by_side(group), cv2.CV_16S, ksize=1)[1:-1], group.shape[1]) for group in halves)


def sharpness(laplacian: NDArray[Any]) -> float:
    """The 75th percentile of `laplacian_tiles` (0..255 grey levels); higher is sharper. Pech-Pacheco et al. 2000, by tile."""
    return rounded(percentile(laplacian, SHARPNESS_PERCENTILE))


def flatness(halves: Halves) -> float:
    """The share of tiles (0..1) in whose upper half the Sobel gradient's magnitude hardly varies: sky, walls, blur, black. Every fourth
    row of it."""
    return rounded(np.mean(tile_variances((_magnitude(side_by_side(group)), group.shape[1]) for group in halves) < FLAT_VARIANCE))


def _magnitude(rows_RX: NDArray[Any]) -> NDArray[Any]:
    """float32: of the Sobel gradient in every fourth row, the first and the last left out."""
    import cv2

    threes = np.arange(0, len(rows_RX) - 2, 4)[:, None] + np.arange(3)  # each with the row above and the row below
    gradients = cv2.spatialGradient(rows_RX.take(threes.ravel(), axis=0))  # both Sobels in one pass, int16
    return np.asarray(cv2.magnitude(*(one_RX[1::3].astype(np.float32) for one_RX in gradients)))


def noise(halves: Halves) -> float:
    """Standard deviation of white noise in grey levels, from the tiles with the least texture (Immerkaer 1996, by tile).

    0 where nothing is exposed. Strong compression wipes noise out of flat tiles; a picture that is texture all over (grass, gravel)
    reads as noise.
    """
    import cv2

    high, level, rows = [], [], 1
    for group in halves:
        some_RX, tiles = side_by_side(group)[:NOISE_TILE_PX + 2], group.shape[1]
        rows = len(some_RX) - 2
        filtered_RX = cv2.convertScaleAbs(cv2.sepFilter2D(some_RX, cv2.CV_16S, NOISE_KERNEL, NOISE_KERNEL))
        high.append(column_sums(filtered_RX[1:-1], tiles))
        level.append(column_sums(some_RX[1:-1], tiles))
    brightness = tile_means(level, rows, NOISE_TILE_PX)
    exposed = (brightness > EXPOSED[0]) & (brightness < EXPOSED[1])
    if not exposed.any():
        return 0.0
    return rounded(NOISE_SCALE * percentile(tile_means(high, rows, NOISE_TILE_PX)[exposed], NOISE_PERCENTILE))
