"""What is measured of a picture: sharpness, flatness and a perceptual hash. Pure functions of pixels, in float32 OpenCV.

All take `rgb_HWC`, uint8 sRGB, upright, at native resolution: a blurred photograph that is scaled down looks sharp. Values are
rounded to five digits, so that the last bits of one machine's vector instructions do not change a content digest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE_PX = 128  # choice: larger than a face's features, smaller than a sky
SHARPNESS_PERCENTILE = 75  # choice: a portrait before a soft background is sharp where it matters
FLAT_VARIANCE = 10.0  # measured: gradients of clear skies, plain walls and black lie below, of blurred things still above
HASH_SIDE_PX = 32  # pHash as commonly defined: DCT of a 32 x 32 picture, its 8 x 8 lowest frequencies
HASH_SIDE = 8
DIGITS = 5


def luma(rgb_HWC: NDArray[Any]) -> NDArray[Any]:
    """uint8 HW, Rec. 601. Raises ValueError for what is not uint8 HWC."""
    import cv2

    if rgb_HWC.dtype != np.uint8 or rgb_HWC.ndim != 3 or rgb_HWC.shape[2] != 3 or 0 in rgb_HWC.shape:
        raise ValueError(f"a picture of shape {rgb_HWC.shape} and type {rgb_HWC.dtype} came in, expected uint8 height x width x 3")
    grey_HW: NDArray[Any] = cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY)
    return grey_HW


def sharpness(grey_HW: NDArray[Any]) -> float:
    """The 75th percentile over tiles of the variance of the Laplacian (0..255 grey levels); higher is sharper."""
    import cv2

    edges_HW = cv2.Laplacian(grey_HW, cv2.CV_32F, ksize=1)
    return _rounded(np.percentile(_tile_variance(edges_HW), SHARPNESS_PERCENTILE))


def flatness(grey_HW: NDArray[Any]) -> float:
    """The share of tiles (0..1) in which the Sobel gradient's magnitude hardly varies: sky, walls, blur, black."""
    import cv2

    across_HW = cv2.Sobel(grey_HW, cv2.CV_32F, 1, 0, ksize=3)
    down_HW = cv2.Sobel(grey_HW, cv2.CV_32F, 0, 1, ksize=3)
    return _rounded(np.mean(_tile_variance(cv2.magnitude(across_HW, down_HW)) < FLAT_VARIANCE))


def perceptual_hash(grey_HW: NDArray[Any]) -> int:
    """64 bits that stay when a picture is resized, re-encoded or slightly retouched: signs of low frequencies about their median.

    DCT pHash (Zauner 2010, and the package imagehash) with OpenCV's area resize and orthonormal DCT; its bits are not those of
    imagehash. The constant term is left out of the median, and frequencies of no strength count as zero, so that all flat
    pictures of one colour agree.
    """
    import cv2

    small_HW = cv2.resize(grey_HW, (HASH_SIDE_PX, HASH_SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small_HW)[:HASH_SIDE, :HASH_SIDE].round(2).ravel()
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes())


def _tile_variance(values_HW: NDArray[Any]) -> NDArray[Any]:
    """Variance in each whole tile; a picture smaller than a tile is one tile."""
    import cv2

    height, width = values_HW.shape
    rows, columns = max(height // TILE_PX, 1), max(width // TILE_PX, 1)
    whole_HW = values_HW[: rows * TILE_PX, : columns * TILE_PX]

    def means(x_HW: NDArray[Any]) -> NDArray[Any]:
        averaged: NDArray[Any] = cv2.resize(x_HW, (columns, rows), interpolation=cv2.INTER_AREA)  # whole factors: the exact mean
        return averaged.astype(np.float64)

    return np.maximum(means(whole_HW * whole_HW) - means(whole_HW) ** 2, 0.0)


def _rounded(value: Any) -> float:
    return float(f"{float(value):.{DIGITS}g}")
