"""How much detail there is: sharpness, flatness, noise. Luma at native resolution: a blurred photograph that is scaled down looks sharp."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.measures.tiles import TILE_PX, bands, column_sums, percentile, rounded, tile_means, tile_variances

SHARPNESS_PERCENTILE = 75  # choice: a portrait before a soft background is sharp where it matters
HALF_TILE_PX = TILE_PX // 2  # choice: the upper half of a tile tells as much of it in half of the time
FLAT_VARIANCE = 10.0  # measured: gradients of clear skies, plain walls and black lie below, of blurred things still above
NOISE_TILE_PX = 32  # choice: small enough that most photographs hold some without texture; the first row of them in each of tiles
NOISE_PERCENTILE = 10  # choice: those tiles
NOISE_KERNEL = np.array([1, -2, 1], np.float32)  # Immerkaer 1996, eq. 2: its outer product with itself
NOISE_SCALE = np.sqrt(np.pi / 2) / 6  # Immerkaer 1996, eq. 4: from the mean magnitude to a standard deviation
EXPOSED = (12, 243)  # choice: in tiles that are darker or brighter on average noise is cut off


def laplacian_tiles(grey_HW: NDArray[Any]) -> NDArray[Any]:
    """Variance of the Laplacian in the upper half of each tile, float64 (rows, columns)."""
    import cv2

    return tile_variances(cv2.Laplacian(band, cv2.CV_16S, ksize=1)[own] for band, own in bands(grey_HW, HALF_TILE_PX))


def sharpness(laplacian: NDArray[Any]) -> float:
    """The 75th percentile of `laplacian_tiles` (0..255 grey levels); higher is sharper. Pech-Pacheco et al. 2000, by tile."""
    return rounded(percentile(laplacian, SHARPNESS_PERCENTILE))


def flatness(grey_HW: NDArray[Any]) -> float:
    """The share of tiles (0..1) in whose upper half the Sobel gradient's magnitude hardly varies: sky, walls, blur, black. Every fourth
    row of it."""
    import cv2

    height = grey_HW.shape[0]
    tall = min(height, TILE_PX)
    rows_TN = np.arange(0, height - tall + 1, tall)[:, None] + np.arange(0, min(tall, HALF_TILE_PX), 4)
    above_below = np.abs(rows_TN - 1), height - 1 - np.abs(height - 2 - rows_TN)  # beyond the picture it is reflected, as OpenCV does
    threes_HW = grey_HW[np.stack([above_below[0], rows_TN, above_below[1]], axis=-1).ravel() % height]
    across_HW, down_HW = cv2.spatialGradient(threes_HW)  # both Sobels in one pass, int16
    magnitude_HW = cv2.magnitude(*(one_HW[1::3].astype(np.float32) for one_HW in (across_HW, down_HW)))
    variances = tile_variances(magnitude_HW.reshape(*rows_TN.shape, -1))
    return rounded(np.mean(variances < FLAT_VARIANCE))


def noise(grey_HW: NDArray[Any]) -> float:
    """Standard deviation of white noise in grey levels, from the tiles with the least texture (Immerkaer 1996, by tile).

    0 where nothing is exposed. Strong compression wipes noise out of flat tiles; a picture that is texture all over (grass, gravel)
    reads as noise.
    """
    import cv2

    high, level, rows = [], [], 1
    for band, own in bands(grey_HW, NOISE_TILE_PX):
        band_HW = cv2.convertScaleAbs(cv2.sepFilter2D(band, cv2.CV_16S, NOISE_KERNEL, NOISE_KERNEL))
        high.append(column_sums(band_HW[own]))
        level.append(column_sums(band[own]))
        rows = len(band[own])
    brightness = tile_means(level, rows, NOISE_TILE_PX)
    exposed = (brightness > EXPOSED[0]) & (brightness < EXPOSED[1])
    if not exposed.any():
        return 0.0
    return rounded(NOISE_SCALE * percentile(tile_means(high, rows, NOISE_TILE_PX)[exposed], NOISE_PERCENTILE))
