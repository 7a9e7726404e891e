"""How much detail there is: sharpness, flatness, noise. Luma at native resolution: a blurred photograph that is scaled down looks sharp."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.measures.rows import Rows, first_difference, second_difference, smoothed
from pipelines.stages.measures.tiles import column_sums, percentile, rounded, tile_means, tile_variances

SHARPNESS_PERCENTILE = 75  # choice: a portrait before a soft background is sharp where it matters
FLAT_VARIANCE = 10.0  # measured: gradients of clear skies, plain walls and black lie below, of blurred things still above
NOISE_TILE_PX = 32  # choice: narrow enough that most photographs hold some without texture; as high as the rows of a tile
NOISE_PERCENTILE = 10  # choice: those tiles
NOISE_SCALE = np.sqrt(np.pi / 2) / 6  # Immerkaer 1996, eq. 4: from the mean magnitude to a standard deviation
EXPOSED = (12, 243)  # choice: in tiles that are darker or brighter on average noise is cut off
Groups = list[Rows]  # rows.some_rows


def laplacian_tiles(groups: Groups) -> NDArray[Any]:
    """Variance of the Laplacian in the rows of each tile, float64 (rows of tiles, columns)."""
    return tile_variances((second_difference(rows.here_RX) + rows.curve_RX, rows.tiles) for rows in groups)


def sharpness(laplacian: NDArray[Any]) -> float:
    """The 75th percentile of `laplacian_tiles` (0..255 grey levels); higher is sharper. Pech-Pacheco et al. 2000, by tile."""
    return rounded(percentile(laplacian, SHARPNESS_PERCENTILE))


def flatness(groups: Groups) -> float:
    """The share of tiles (0..1) in which the magnitude of Sobel's gradient hardly varies, in every second of their rows: sky, walls, blur,
    black."""
    return rounded(np.mean(tile_variances((_magnitude(rows), rows.tiles) for rows in groups) < FLAT_VARIANCE))


def _magnitude(rows: Rows) -> NDArray[Any]:
    """float32: of the Sobel gradient."""
    import cv2

    across_RX, down_RX = first_difference(rows.smooth_RX[::2]), smoothed(rows.slope_RX[::2])
    return np.asarray(cv2.magnitude(across_RX.astype(np.float32), down_RX.astype(np.float32)))


def noise(groups: Groups) -> float:
    """Standard deviation of white noise in grey levels, from the tiles with the least texture (Immerkaer 1996, by tile).

    0 where nothing is exposed. Strong compression wipes noise out of flat tiles; a picture that is texture all over (grass, gravel)
    reads as noise.
    """
    rows = len(groups[0].here_RX)
    level = [column_sums(group.here_RX, group.tiles) for group in groups]
    high = [column_sums(np.abs(second_difference(group.curve_RX)), group.tiles) for group in groups]  # Immerkaer 1996, eq. 2
    brightness = tile_means(level, rows, NOISE_TILE_PX)
    exposed = (brightness > EXPOSED[0]) & (brightness < EXPOSED[1])
    if not exposed.any():
        return 0.0
    return rounded(NOISE_SCALE * percentile(tile_means(high, rows, NOISE_TILE_PX)[exposed], NOISE_PERCENTILE))
