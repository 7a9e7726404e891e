"""Whole chains against the same steps done plainly: whole kernels in double, torch's resize, numpy's generators, Pillow's JPEG.

Both take the same draws, with noise of their own, so each measure of the two pictures differs by noise alone: no bias may be left.
benchmarks/degradation.py compares with the published code itself, where it is installed.
"""

from __future__ import annotations

import io
from math import ceil, log2
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from supir_model.degradation import DegradationParams, degrade, draw
from supir_model.degradation.kernels import kernel
from supir_model.images import crop, decode

PHOTO = Path(__file__).resolve().parents[4] / "examples" / "photos" / "forest_stream.jpg"
SIZE, COUNT = 128, 50
X = crop(decode(PHOTO.read_bytes()).rgb_HWC, SIZE).astype(np.float32) / np.float32(255)
GREY = np.array([0.2989, 0.587, 0.114])


def tensor(x_HWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x_HWC)).double().permute(2, 0, 1)[None]


def array(x_BCHW: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x_BCHW[0].permute(1, 2, 0).numpy())


def plain(x_HWC: np.ndarray, step: Any, rng: np.random.Generator) -> np.ndarray:
    """One step in double precision."""
    match type(step).__name__:
        case "Blur" | "Sinc":
            return cv2.filter2D(x_HWC, cv2.CV_64F, kernel(step).astype(np.float64), borderType=cv2.BORDER_REFLECT_101)
        case "Resize" if step.mode == "area":
            return cv2.resize(x_HWC, (step.width, step.height), interpolation=cv2.INTER_AREA)
        case "Resize":
            mode, smooth = step.mode.removesuffix("_antialiased"), step.mode.endswith("_antialiased")
            return array(interpolate(tensor(x_HWC), size=(step.height, step.width), mode=mode, antialias=smooth))
        case "Gaussian":
            return np.clip(x_HWC + rng.standard_normal((*x_HWC.shape[:2], 1 if step.grey else 3)) * step.sigma / 255, 0, 1)
        case "Poisson":
            source = levels((x_HWC @ GREY)[..., None] if step.grey else x_HWC) / 255.0
            quanta = 2 ** ceil(log2(len(np.unique(source))))
            return np.clip(x_HWC + step.scale * (rng.poisson(source * quanta) / quanta - source), 0, 1)
        case "Jpeg":
            out = io.BytesIO()
            Image.fromarray(levels(x_HWC)).save(out, "JPEG", quality=step.quality, subsampling=2)
            return np.asarray(Image.open(out).convert("RGB")) / 255.0
        case "Sharpen":
            return sharpened(x_HWC, step)
        case "Round":
            return levels(x_HWC) / 255.0
    raise AssertionError(f"no plain way to do {step}")


def plainly(params: DegradationParams, seed: int) -> np.ndarray:
    rng, x_HWC = np.random.default_rng(seed), X.astype(np.float64)
    for step in params.steps:
        x_HWC = plain(x_HWC, step, rng)
    return x_HWC


def sharpened(x_HWC: np.ndarray, step: Any) -> np.ndarray:
    residual = x_HWC - cv2.GaussianBlur(x_HWC, (51, 51), 0)
    soft = cv2.GaussianBlur((np.abs(residual) * 255 > step.threshold).astype(np.float64), (51, 51), 0)
    return soft * np.clip(x_HWC + step.weight * residual, 0, 1) + (1 - soft) * x_HWC


def levels(x_HWC: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x_HWC * 255), 0, 255).astype(np.uint8)


def measures(lq_HWC: np.ndarray) -> list[float]:
    """PSNR in dB; mean, contrast and mean step between neighbours in levels."""
    psnr = -10 * np.log10(np.mean((lq_HWC.astype(np.float64) - X) ** 2))
    return [psnr, lq_HWC.mean() * 255, lq_HWC.std() * 255, np.abs(np.diff(lq_HWC, axis=0)).mean() * 255]


@pytest.mark.parametrize("preset", ["real_esrgan", "light_stablesr", "blur2_x4_noise20_jpeg50"])
def test_a_chain_does_what_its_steps_done_plainly_do(preset: str) -> None:
    """No bias beyond 4.5 standard errors, and no more spread than two plain runs have (1.5: passed by chance once in 300 draws of 50)."""
    ours_to_plain, plain_to_plain = [], []
    for position in range(COUNT):
        params = draw(preset, 21, position, SIZE)
        one, other = (measures(plainly(params, seed)) for seed in (position, COUNT + position))
        ours_to_plain.append(np.subtract(measures(degrade(X, params)), one))
        plain_to_plain.append(np.subtract(other, one))
    found, noise = np.array(ours_to_plain), np.array(plain_to_plain)
    assert (np.abs(found.mean(axis=0)) < 4.5 * found.std(axis=0) / np.sqrt(COUNT)).all(), found.mean(axis=0)
    assert (found.std(axis=0) < 1.5 * noise.std(axis=0)).all(), found.std(axis=0) / noise.std(axis=0)
