"""Each step on one picture: float32 HWC in [0, 1] (RGB), computed by OpenCV. What leaves an operation may lie outside the range.

The numbers of a picture depend on its parameters alone, not on the batch or the thread, and are bit-equal from call to call.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

import cv2
import numpy as np

from supir_model.degradation.kernels import is_separable, kernel, line, trimmed
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
LEVEL_VALUES = np.arange(256, dtype=np.float32) / FULL_SCALE
DIRECT_TAPS = 130  # up to here OpenCV's filter2D sums products; above it goes through a Fourier transform
BANDED_PX = 17  # measured: up to this side, sums of products band by band take less than the Fourier transform


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
        across, down = (trimmed(line(sigma, step.size_px)) for sigma in (step.sigma_x, step.sigma_y))
        return cv2.sepFilter2D(x_HWC, -1, across, down, borderType=BORDER)
    return _correlate(x_HWC, trimmed(kernel(step)))


def _correlate(x_HWC: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """With an odd square of weights; of a middle size in bands of its rows, which are summed."""
    side = len(weights)
    if side**2 <= DIRECT_TAPS or side > BANDED_PX:
        return cv2.filter2D(x_HWC, -1, weights, borderType=BORDER)
    half, height, width = side // 2, x_HWC.shape[0], x_HWC.shape[1]
    padded = cv2.copyMakeBorder(x_HWC, half, half, half, half, BORDER)
    total: np.ndarray | None = None
    for first in range(0, side, DIRECT_TAPS // side):
        band = np.ascontiguousarray(weights[first : first + DIRECT_TAPS // side])
        above = len(band) // 2  # the rows over the anchor, of which the first result needs no border
        part = cv2.filter2D(padded[first : first + height + len(band) - 1], -1, band)[above : above + height]
        total = part if total is None else cv2.add(total, part, dst=total)
    assert total is not None, f"a kernel of {side} px has no band"
    return np.ascontiguousarray(total[:, half : half + width])


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
    noise = standard_normal(rng, (*x_HWC.shape[:2], 1 if step.grey else 3), scale=step.sigma / 255.0)
    return _added(x_HWC, noise)


def poisson(x_HWC: np.ndarray, step: Poisson, params: DegradationParams) -> np.ndarray:
    """x + scale (Poisson(x q) / q - x) on the 8-bit levels of x; q = 2^ceil(log2(number of levels that occur))."""
    rng = stream(params.seed, step.purpose, params.position)
    levels = _levels(cv2.transform(x_HWC, GREY_WEIGHTS[None])[..., None] if step.grey else x_HWC)
    occurring = int(np.count_nonzero(cv2.calcHist([levels.reshape(len(levels), -1)], [0], None, [256], [0, 256])))
    quanta = 2 ** ceil(log2(occurring))
    noise = poisson_of_levels(rng, levels, quanta)
    noise *= np.float32(step.scale / quanta)
    noise -= cv2.LUT(levels, LEVEL_VALUES * np.float32(step.scale)).reshape(noise.shape)
    return _added(x_HWC, noise)


def _added(x_HWC: np.ndarray, noise_HWC: np.ndarray) -> np.ndarray:
    """Their sum in [0, 1]; noise of one channel is added to all three."""
    noisy: np.ndarray = x_HWC + noise_HWC
    np.clip(noisy, 0.0, 1.0, out=noisy)
    return noisy


def jpeg(x_HWC: np.ndarray, step: Jpeg, _: DegradationParams) -> np.ndarray:
    """A real encoder and decoder (libjpeg inside OpenCV): 8 bits, 4:2:0, standard tables scaled by the quality."""
    bgr = cv2.cvtColor(_levels(x_HWC), cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, step.quality])
    assert done, f"OpenCV did not encode a picture of shape {bgr.shape} at quality {step.quality}"
    back = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert back is not None, "OpenCV did not decode the JPEG that it had just made"
    return from_levels(back)


def sharpen(x_HWC: np.ndarray, step: Sharpen, _: DegradationParams) -> np.ndarray:
    """Unsharp mask where the residual exceeds the threshold, with a softened mask: x + soft (clip(x + w residual) - x)."""
    size_px = 2 * (step.radius_px // 2) + 1
    profile = line(0.3 * ((size_px - 1) * 0.5 - 1) + 0.8, size_px)  # OpenCV's sigma for a kernel of that size
    residual = x_HWC - cv2.sepFilter2D(x_HWC, -1, profile, profile, borderType=BORDER)
    mask = (np.abs(residual) > np.float32(step.threshold / 255.0)).astype(np.float32)
    soft: np.ndarray = cv2.sepFilter2D(mask, -1, profile, profile, borderType=BORDER)
    change: np.ndarray = x_HWC + np.float32(step.weight) * residual
    np.clip(change, 0.0, 1.0, out=change)
    change -= x_HWC
    change *= soft
    change += x_HWC
    return change


def round_levels(x_HWC: np.ndarray, _step: Round, _: DegradationParams) -> np.ndarray:
    return from_levels(_levels(x_HWC))


def _levels(x_HWC: np.ndarray) -> np.ndarray:
    """uint8, rounded to the nearest (half to even) and clipped; keeps the shape."""
    return np.asarray(cv2.convertScaleAbs(np.maximum(x_HWC, 0.0), alpha=255.0)).reshape(x_HWC.shape)


def from_levels(rgb_HWC: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [0, 1]."""
    return np.asarray(cv2.LUT(rgb_HWC, LEVEL_VALUES)).reshape(rgb_HWC.shape)


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
