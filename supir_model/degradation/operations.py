"""Each step on one picture: float32 HWC in [0, 1] (RGB), computed by OpenCV. What leaves an operation may lie outside the range.

The numbers of a picture depend on its parameters alone, not on the batch or the thread, and are bit-equal from call to call.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

import cv2
import numpy as np

from supir_model.degradation.kernels import is_separable, kernel, line
from supir_model.degradation.steps import (
    Blur,
    DegradationParams,
    Gaussian,
    Jpeg,
    Poisson,
    Resize,
    Round,
    Sharpen,
    Sinc,
    Step,
)
from supir_model.degradation.streams import poisson_of_levels, standard_normal, stream

INTERPOLATION = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
BORDER = cv2.BORDER_REFLECT_101  # torch calls it "reflect"
GREY_WEIGHTS = np.array([0.2989, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
FULL_SCALE = np.float32(255.0)


def degrade(x_HWC: np.ndarray, params: DegradationParams) -> np.ndarray:
    """float32 (size_px, size_px, 3) in [0, 1] -> the same shape and range, on the 256 levels of a file."""
    expected = (params.size_px, params.size_px, 3)
    if x_HWC.shape != expected:
        raise ValueError(f"the degradation was drawn for {expected}, the picture is {x_HWC.shape}: draw it for that size_px")
    for step in params.steps:
        x_HWC = OPERATIONS[type(step)](x_HWC, step, params)
    return x_HWC


def blur(x_HWC: np.ndarray, step: Blur | Sinc, _: DegradationParams) -> np.ndarray:
    if isinstance(step, Blur) and is_separable(step):
        return cv2.sepFilter2D(x_HWC, -1, line(step.sigma_x, step.size_px), line(step.sigma_y, step.size_px), borderType=BORDER)
    return cv2.filter2D(x_HWC, -1, kernel(step), borderType=BORDER)


def resize(x_HWC: np.ndarray, step: Resize, _: DegradationParams) -> np.ndarray:
    """area, bilinear, bicubic without antialiasing (as the published degradations), or bicubic with it."""
    if x_HWC.shape[:2] == (step.height, step.width):
        return x_HWC
    if step.mode == "bicubic_antialiased":
        return _antialiased(x_HWC, step.height, step.width)
    return cv2.resize(x_HWC, (step.width, step.height), interpolation=INTERPOLATION[step.mode])


def _antialiased(x_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    import torch

    from supir_model.images import resize_BCHW

    x_1CHW = torch.from_numpy(np.ascontiguousarray(x_HWC)).permute(2, 0, 1)[None]
    return np.ascontiguousarray(resize_BCHW(x_1CHW, height, width)[0].permute(1, 2, 0).numpy())


def gaussian(x_HWC: np.ndarray, step: Gaussian, params: DegradationParams) -> np.ndarray:
    rng = stream(params.seed, step.purpose, params.position)
    noise = standard_normal(rng, (*x_HWC.shape[:2], 1 if step.grey else 3))
    return np.clip(x_HWC + noise * np.float32(step.sigma / 255.0), 0.0, 1.0)


def poisson(x_HWC: np.ndarray, step: Poisson, params: DegradationParams) -> np.ndarray:
    """x + scale (Poisson(x q) / q - x) on the 8-bit levels of x; q = 2^ceil(log2(number of levels that occur))."""
    rng = stream(params.seed, step.purpose, params.position)
    source = x_HWC @ GREY_WEIGHTS[:, None] if step.grey else x_HWC
    levels = np.clip(np.rint(source * FULL_SCALE), 0, 255).astype(np.uint8)
    occurring = int(np.count_nonzero(np.bincount(levels.ravel(), minlength=256)))
    quanta = 2 ** ceil(log2(occurring))
    shot = poisson_of_levels(rng, levels, quanta)
    noise = shot * np.float32(1.0 / quanta) - levels * np.float32(1.0 / 255.0)
    return np.asarray(np.clip(x_HWC + noise * np.float32(step.scale), 0.0, 1.0))


def jpeg(x_HWC: np.ndarray, step: Jpeg, _: DegradationParams) -> np.ndarray:
    """A real encoder and decoder (libjpeg inside OpenCV): 8 bits, 4:2:0, standard tables scaled by the quality."""
    bgr = cv2.cvtColor(_levels(x_HWC), cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, step.quality])
    assert done, f"OpenCV did not encode a picture of shape {bgr.shape} at quality {step.quality}"
    back = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert back is not None, "OpenCV did not decode the JPEG that it had just made"
    return _from_levels(cv2.cvtColor(back, cv2.COLOR_BGR2RGB))


def sharpen(x_HWC: np.ndarray, step: Sharpen, _: DegradationParams) -> np.ndarray:
    """Unsharp mask where the residual exceeds the threshold, with a softened mask."""
    size_px = 2 * (step.radius_px // 2) + 1
    profile = line(0.3 * ((size_px - 1) * 0.5 - 1) + 0.8, size_px)  # OpenCV's sigma for a kernel of that size
    residual = x_HWC - cv2.sepFilter2D(x_HWC, -1, profile, profile, borderType=BORDER)
    mask = (np.abs(residual) * FULL_SCALE > step.threshold).astype(np.float32)
    soft = cv2.sepFilter2D(mask, -1, profile, profile, borderType=BORDER)
    sharp = np.clip(x_HWC + np.float32(step.weight) * residual, 0.0, 1.0)
    return np.asarray(soft * sharp + (1.0 - soft) * x_HWC)


def round_levels(x_HWC: np.ndarray, _step: Round, _: DegradationParams) -> np.ndarray:
    return _from_levels(_levels(x_HWC))


def _levels(x_HWC: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x_HWC * FULL_SCALE), 0, 255).astype(np.uint8)


def _from_levels(rgb_HWC: np.ndarray) -> np.ndarray:
    return rgb_HWC.astype(np.float32) / FULL_SCALE


OPERATIONS: dict[type[Step], Callable[..., np.ndarray]] = {
    Blur: blur,
    Sinc: blur,
    Resize: resize,
    Gaussian: gaussian,
    Poisson: poisson,
    Jpeg: jpeg,
    Sharpen: sharpen,
    Round: round_levels,
}
