"""Light and colour: clipping, entropy, colourfulness, saturation. Over every sixteenth row, or every eighth pixel in both directions:
they are sums over the whole picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.measures.tiles import rounded

ROWS, PIXELS = 16, 8  # choice: 65,000 grey levels and 16,000 colours of a picture of 1024 x 1024
DARK, BRIGHT = 4, 251  # choice: what compression makes of 0 and 255


def levels(grey_HW: NDArray[Any]) -> NDArray[Any]:
    """float64 (256,): the share of the pixels at each grey level."""
    import cv2

    some_HW = np.ascontiguousarray(grey_HW[::ROWS])
    counts = cv2.calcHist([some_HW], [0], None, [256], [0, 256]).ravel()
    return np.asarray(counts.astype(np.float64) / some_HW.size)


def dark_share(shares: NDArray[Any]) -> float:
    """The share of `levels` (0..1) that is black."""
    return rounded(shares[:DARK + 1].sum())


def bright_share(shares: NDArray[Any]) -> float:
    """The share of `levels` (0..1) that is white."""
    return rounded(shares[BRIGHT:].sum())


def entropy(shares: NDArray[Any]) -> float:
    """Shannon entropy of `levels` in bits, 0..8: low for drawings, tables of text, and photographs of little but one tone."""
    some = shares[shares > 0]
    return rounded(max(-float((some * np.log2(some)).sum()), 0.0))


def some_colours(rgb_HWC: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Red, green and blue of every eighth pixel of every eighth row, a plane each."""
    some_HWC = rgb_HWC[::PIXELS, ::PIXELS]
    return tuple(np.ascontiguousarray(some_HWC[..., channel]) for channel in range(3))  # measured: whole pixels take twice as long


def colourfulness(planes: tuple[NDArray[Any], ...]) -> float:
    """Hasler and Suesstrunk 2003, M3: 0 for grey, 15 slightly, 45 quite, 100 extremely colourful."""
    import cv2

    red_HW, green_HW, blue_HW = planes
    red_green_HW = cv2.subtract(red_HW, green_HW, dtype=cv2.CV_16S)  # eq. 3
    yellow_HW = cv2.add(red_HW, green_HW, dtype=cv2.CV_16S)
    yellow_blue_HW = cv2.subtract(yellow_HW, cv2.add(blue_HW, blue_HW, dtype=cv2.CV_16S))  # twice eq. 4: whole numbers
    mean, deviation = (one.ravel() / (1, 2) for one in cv2.meanStdDev(cv2.merge([red_green_HW, yellow_blue_HW])))
    return rounded(np.hypot(*deviation) + 0.3 * np.hypot(*mean))


def saturation(planes: tuple[NDArray[Any], ...]) -> float:
    """Mean saturation (0..1) of the HSV model."""
    import cv2

    return rounded(cv2.mean(cv2.cvtColor(cv2.merge(planes), cv2.COLOR_RGB2HSV))[1] / 255)
