"""A degradation as a quick loop over OpenCV would do it: the same drawn steps, one picture after another.

Made for speed and nothing else: noise from OpenCV's one generator, so that no picture can be made again; Poisson noise as a normal of
its variance; kernels as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2
from typing import Any

import cv2
import numpy as np

from supir_model.degradation.kernels import is_separable, kernel
from supir_model.degradation.steps import Blur

MODES = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def prototype(x_HWC: np.ndarray, steps: tuple[Any, ...]) -> np.ndarray:
    """One picture, float32 HWC in [0, 1], through the steps."""
    for step in steps:
        x_HWC = STEPS[type(step).__name__](x_HWC, step)
    return x_HWC


def blur(x_HWC: np.ndarray, step: Any) -> np.ndarray:
    if isinstance(step, Blur) and is_separable(step):
        return cv2.GaussianBlur(x_HWC, (step.size_px, step.size_px), step.sigma_x)
    return cv2.filter2D(x_HWC, -1, kernel(step))


def resize(x_HWC: np.ndarray, step: Any) -> np.ndarray:
    return cv2.resize(x_HWC, (step.width, step.height), interpolation=MODES[step.mode])


def normal(x_HWC: np.ndarray, grey: bool) -> np.ndarray:
    noise = np.empty(x_HWC.shape[:2] if grey else x_HWC.shape, np.float32)
    cv2.randn(noise, 0, 1)
    return noise[..., None] if grey else noise


def gaussian(x_HWC: np.ndarray, step: Any) -> np.ndarray:
    return np.clip(x_HWC + normal(x_HWC, step.grey) * np.float32(step.sigma / 255), 0, 1)


def poisson(x_HWC: np.ndarray, step: Any) -> np.ndarray:
    source = cv2.cvtColor(x_HWC, cv2.COLOR_RGB2GRAY) if step.grey else x_HWC
    levels = levels_of(source)
    occurring = np.count_nonzero(np.bincount(levels.ravel(), minlength=256))
    deviation = cv2.sqrt(levels.astype(np.float32) / np.float32(255 * 2 ** ceil(log2(occurring)))).reshape(*x_HWC.shape[:2], -1)
    return np.clip(x_HWC + np.float32(step.scale) * deviation * normal(x_HWC, step.grey), 0, 1)


def jpeg(x_HWC: np.ndarray, step: Any) -> np.ndarray:
    bgr = cv2.cvtColor(levels_of(x_HWC), cv2.COLOR_RGB2BGR)
    back = cv2.imdecode(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, step.quality])[1], cv2.IMREAD_COLOR)
    return cv2.cvtColor(back, cv2.COLOR_BGR2RGB).astype(np.float32) / np.float32(255)


def round_levels(x_HWC: np.ndarray, _: Any) -> np.ndarray:
    return levels_of(x_HWC).astype(np.float32) / np.float32(255)


def levels_of(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x * np.float32(255)), 0, 255).astype(np.uint8)


STEPS: dict[str, Callable[..., np.ndarray]] = {
    "Blur": blur, "Sinc": blur, "Resize": resize, "Gaussian": gaussian, "Poisson": poisson, "Jpeg": jpeg, "Round": round_levels,
}  # fmt: skip
