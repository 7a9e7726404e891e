"""A hash that stays when a picture is resized, re-encoded or slightly retouched."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_SIDE_PX = 32  # pHash as commonly defined: DCT of a 32 x 32 picture, its 8 x 8 lowest frequencies
HASH_SIDE = 8


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
