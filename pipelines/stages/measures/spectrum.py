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
    height, width = grey_HW.shape
    tall, wide = min(height, TILE_PX), min(width, TILE_PX)
    best = np.argsort(-laplacian.ravel(), kind="stable")[:TILES]
    corners = [(tall * (int(i) // laplacian.shape[1]), wide * (int(i) % laplacian.shape[1])) for i in best]
    tiles_NHW = np.stack([grey_HW[y:y + tall, x:x + wide] for y, x in corners])
    across_NW, down_NH = tiles_NHW[:, ::EVERY].reshape(-1, wide), tiles_NHW[:, :, ::EVERY].transpose(0, 2, 1).reshape(-1, tall)
    both = [np.stack([across_NW, down_NH])] if tall == wide else [across_NW[None], down_NH[None]]
    return rounded(min(_reach(one) for lines_DNL in both for one in _power(lines_DNL, sigma)))


def _power(lines_DNL: NDArray[Any], sigma: float) -> NDArray[Any]:
    """(D, frequencies): mean power spectrum of N lines of pixels in each direction, without the floor of rounding and noise."""
    window = _window(lines_DNL.shape[2])
    lines = lines_DNL.astype(np.float32)
    lines -= lines.mean(axis=2, keepdims=True)
    lines *= window
    spectrum = np.fft.rfft(lines)
    power = (spectrum.real**2 + spectrum.imag**2).mean(axis=1)
    return np.maximum(power - (ROUNDING + sigma**2) * float((window**2).sum()), 0.0)


@cache
def _window(length: int) -> NDArray[Any]:
    return np.asarray(np.hanning(length + 2)[1:-1], np.float32)


def _reach(power: NDArray[Any]) -> float:
    """The share of Nyquist at which the whitened power has reached SHARE of its sum, interpolated between bins."""
    last = len(power) - 1
    white = power.astype(np.float64) * np.arange(last + 1) ** WHITENING
    white[:2] = 0.0  # the window leaks the mean into the first bin
    total = white.sum()
    if total <= 0:
        return 0.0
    reached = np.cumsum(white) / total
    k = int(np.searchsorted(reached, SHARE))
    before = reached[k - 1] if k else 0.0
    return float((k - 1 + (SHARE - before) / (reached[k] - before)) / last)
