"""True resolution: up to which frequency the sharpest tiles of a picture hold anything. Finds pictures that were enlarged."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.measures.tiles import TILE_PX, rounded

TILES = 8  # choice: the sharpest; what is out of focus says nothing of the camera
EVERY = 8  # choice: every eighth line of a tile tells as much
SHARE = 0.97  # measured: of 0.90, 0.95, 0.97 and 0.99, and of the exponents 1, 2 and 3, this pair told enlarged photographs best
WHITENING = 2  # the spectra of photographs fall as 1 / f^2 in power (Field 1987): this makes them level
ROUNDING = 1 / 12  # variance of rounding to whole grey levels


def cutoff(grey_HW: NDArray[Any], laplacian: NDArray[Any], sigma: float) -> float:
    """The frequency (0..1, share of Nyquist) below which 97 % of a picture's whitened spectrum lie, in its poorer direction.

    `laplacian`: detail.laplacian_tiles, which choose the tiles; `sigma`: detail.noise, whose power is taken off. A photograph at its
    native resolution reaches 0.8 to 1, one that was enlarged twice about 0.5, four times 0.3; blur lowers it too. 0 for no detail.
    """
    tall, wide = (min(side, TILE_PX) for side in grey_HW.shape)
    best = np.argsort(-laplacian.ravel(), kind="stable")[:TILES]
    down, across = laplacian.shape
    every_HTWT = grey_HW[:down * tall, :across * wide].reshape(down, tall, across, wide)
    tiles_NHW = every_HTWT[best // across, :, best % across]
    directions = (tiles_NHW[:, ::EVERY].reshape(-1, wide), tiles_NHW[:, :, ::EVERY].transpose(0, 2, 1).reshape(-1, tall))
    return rounded(min(_reach(_power(lines_NL, sigma)) for lines_NL in directions))


def _power(lines_NL: NDArray[Any], sigma: float) -> NDArray[Any]:
    """float64 (L // 2 + 1,): mean power spectrum of N lines of L pixels, without the floor of rounding and noise."""
    import cv2

    window = _window(lines_NL.shape[1])
    lines = lines_NL.astype(np.float32)
    lines -= cv2.reduce(lines, 1, cv2.REDUCE_AVG)
    lines *= window
    packed_NL = cv2.dft(lines, flags=cv2.DFT_ROWS)  # real, then real and imaginary in turn; that of Nyquist is real
    squares_L = cv2.reduce(packed_NL, 0, cv2.REDUCE_SUM2, dtype=cv2.CV_64F).ravel() / len(lines)
    imaginary = squares_L[2::2]
    power = squares_L[np.maximum(np.arange(-1, len(squares_L), 2), 0)]
    power[1:1 + len(imaginary)] += imaginary
    return np.maximum(power - (ROUNDING + sigma**2) * float((window**2).sum()), 0.0)


@cache
def _window(length: int) -> NDArray[Any]:
    return np.asarray(np.hanning(length + 2)[1:-1], np.float32)


def _reach(power: NDArray[Any]) -> float:
    """The share of Nyquist at which the whitened power has reached SHARE of its sum, interpolated between bins."""
    last = len(power) - 1
    white = power * np.arange(last + 1) ** WHITENING
    white[:2] = 0.0  # the window leaks the mean into the first bin
    total = white.sum()
    if total <= 0:
        return 0.0
    reached = np.cumsum(white) / total
    k = int(np.searchsorted(reached, SHARE))
    before = reached[k - 1] if k else 0.0
    return float((k - 1 + (SHARE - before) / (reached[k] - before)) / last)
