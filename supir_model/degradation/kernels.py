"""Blur kernels: odd squares that sum to one, float32, at their own size (padding them to 21 x 21 would only cost time)."""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np
import torch

from supir_model.degradation.steps import Blur, Sinc

NEGLIGIBLE = 1e-6  # choice: moves no pixel by more than that, a 4,000th of a level


def kernel(blur: Blur | Sinc) -> np.ndarray:
    """float32 (size_px, size_px), sum 1."""
    values = sinc(blur) if isinstance(blur, Sinc) else bump(blur)
    return np.asarray(values / values.sum(), dtype=np.float32)


def trimmed(values: np.ndarray) -> np.ndarray:
    """The middle of an odd line or square, without its margin where that holds less than NEGLIGIBLE in all."""
    half, total = len(values) // 2, np.abs(values).sum(dtype=np.float64)
    for margin in range(half, 0, -1):
        middle = values[(slice(margin, len(values) - margin),) * values.ndim]
        if total - np.abs(middle).sum(dtype=np.float64) < NEGLIGIBLE:
            return np.ascontiguousarray(middle)
    return values


def is_separable(blur: Blur | Sinc) -> bool:
    """Only the Gaussian whose axes are the picture's."""
    if isinstance(blur, Sinc) or blur.family != "gaussian" or blur.beta != 1.0:
        return False
    return blur.rotation == 0.0 or blur.sigma_x == blur.sigma_y


def line(sigma: float, size_px: int) -> np.ndarray:
    """float32 (size_px,), sum 1: the factor of a separable Gaussian."""
    offsets = np.arange(size_px) - size_px // 2
    values = np.exp(-0.5 * (offsets / sigma) ** 2)
    return np.asarray(values / values.sum(), dtype=np.float32)


def bump(blur: Blur) -> np.ndarray:
    """gaussian: exp(-q^beta / 2); plateau: 1 / (1 + q^beta); q = x' C^-1 x, C = R diag(sigma_x^2, sigma_y^2) R'."""
    axis = np.arange(blur.size_px) - blur.size_px // 2
    x, y = np.meshgrid(axis, axis)
    along = (cos(blur.rotation) * x + sin(blur.rotation) * y) / blur.sigma_x
    across = (-sin(blur.rotation) * x + cos(blur.rotation) * y) / blur.sigma_y
    q = along**2 + across**2
    if blur.family == "plateau":
        return np.asarray(1.0 / (1.0 + q**blur.beta))
    return np.asarray(np.exp(-0.5 * q**blur.beta))


def sinc(blur: Sinc) -> np.ndarray:
    """The circular ideal low-pass, cut to the square: cutoff J1(cutoff r) / (2 pi r), cutoff^2 / (4 pi) at its centre."""
    axis = np.arange(blur.size_px) - blur.size_px // 2
    r = np.hypot(*np.meshgrid(axis, axis))
    centre = r == 0
    r_safe = np.where(centre, 1.0, r)
    bessel = torch.special.bessel_j1(torch.from_numpy(blur.cutoff * r_safe)).numpy()
    return np.where(centre, blur.cutoff**2 / (4 * pi), blur.cutoff * bessel / (2 * pi * r_safe))
