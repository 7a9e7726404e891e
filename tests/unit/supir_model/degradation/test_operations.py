"""Every operation against a trusted implementation (OpenCV, Pillow, torch, scipy's formula), and the whole against itself."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from math import pi
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d, interpolate, pad

from supir_model.degradation import PRESETS, apply, apply_rgb, degrade, draw, operations
from supir_model.degradation.draws import SHARPEN
from supir_model.degradation.kernels import kernel
from supir_model.degradation.steps import Blur, DegradationParams, Gaussian, Jpeg, Poisson, Resize, Round, Sinc
from supir_model.images import crop, decode, rgb_to_unit

PHOTO = Path(__file__).resolve().parents[4] / "examples" / "photos" / "forest_stream.jpg"
RGB = crop(decode(PHOTO.read_bytes()).rgb_HWC, 128)
X = RGB.astype(np.float32) / 255.0
NONE = DegradationParams(preset="x4", seed=1, position=2, size_px=128, steps=())


def tensor(x_HWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x_HWC)).permute(2, 0, 1)[None]


def array(x_BCHW: torch.Tensor) -> np.ndarray:
    return x_BCHW[0].permute(1, 2, 0).numpy()


def bump(**changes: object) -> Blur:
    values = {"family": "gaussian", "size_px": 21, "sigma_x": 2.0, "sigma_y": 1.0, "rotation": 0.6, "beta": 1.0}
    return Blur(**(values | changes))  # type: ignore[arg-type]


KERNELS = {
    "gaussian": bump(),
    "isotropic": bump(sigma_y=2.0, rotation=0.0),
    "generalised": bump(beta=0.5),
    "plateau": bump(family="plateau", beta=2.0),
    "sinc": Sinc(size_px=15, cutoff=1.3),
    "sinc of 13": Sinc(size_px=13, cutoff=1.3),
    "sinc of 17": Sinc(size_px=17, cutoff=1.3),
    "mostly margin": bump(size_px=21, sigma_x=0.7, sigma_y=0.3),
}


@pytest.mark.parametrize("name", KERNELS)
def test_blur_is_a_correlation_with_the_kernel(name: str) -> None:
    """torch's conv2d over a reflected border, double precision; 1e-5: float32 sums of 441 products, one by a Fourier transform."""
    step = KERNELS[name]
    weight = torch.from_numpy(kernel(step)).double()
    half = step.size_px // 2
    x_padded = pad(tensor(X).double(), [half] * 4, mode="reflect")
    trusted = conv2d(x_padded, weight.expand(3, 1, -1, -1), groups=3)
    assert np.abs(operations.blur(X, step, NONE) - array(trusted)).max() < 1e-5


def test_kernels_follow_their_formulas() -> None:
    for step in KERNELS.values():
        k = kernel(step)
        assert abs(float(k.sum()) - 1) < 1e-6
        assert np.allclose(k, k[::-1, ::-1])  # symmetric through the centre
    gauss = cv2.getGaussianKernel(21, 2.0)
    assert np.allclose(kernel(KERNELS["isotropic"]), gauss @ gauss.T, atol=1e-7)
    # anisotropic: the inverse covariance, written out
    c, s = np.cos(0.6), np.sin(0.6)
    rotation = np.array([[c, -s], [s, c]])
    inverse = np.linalg.inv(rotation @ np.diag([4.0, 1.0]) @ rotation.T)
    grid = np.stack(np.meshgrid(np.arange(-10, 11), np.arange(-10, 11)), axis=-1)
    q = np.einsum("...i,ij,...j", grid, inverse, grid)
    for name, values in (("gaussian", np.exp(-q / 2)), ("generalised", np.exp(-np.sqrt(q) / 2)), ("plateau", 1 / (1 + q**2))):
        assert np.allclose(kernel(KERNELS[name]), values / values.sum(), atol=1e-7), name


def test_sinc_passes_below_its_cutoff_and_stops_above() -> None:
    """Gain of a plane wave; a kernel of 21 px is short, so the pass and stop bands are judged away from the edge and within 10 %."""
    k = kernel(Sinc(size_px=21, cutoff=pi / 2))
    offsets = np.arange(-10, 11)

    def gain(omega: float) -> float:
        return float((k * np.cos(omega * offsets)[None]).sum())

    assert gain(0.0) == pytest.approx(1.0, abs=1e-6)
    assert gain(pi / 4) == pytest.approx(1.0, abs=0.1)
    assert gain(0.85 * pi) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("side", [37, 190])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resize_equals_torch(mode: str, side: int) -> None:
    """Both are half-pixel centred with a = -0.75; 2e-5: OpenCV's weights are float32."""
    found = operations.resize(X, Resize(height=side, width=side, mode=mode), NONE)  # type: ignore[arg-type]
    trusted = interpolate(tensor(X), size=(side, side), mode=mode)
    assert np.abs(found - array(trusted)).max() < 2e-5


def test_area_by_a_whole_factor_is_the_mean_of_blocks() -> None:
    found = operations.resize(X, Resize(height=32, width=32, mode="area"), NONE)
    assert np.abs(found - X.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))).max() < 1e-6


def test_antialiased_bicubic_is_pillows() -> None:
    """Pillow computes in 8-bit fixed point over two passes: half a level each, and one for rounding."""
    found = operations.resize(X, Resize(height=32, width=32, mode="bicubic_antialiased"), NONE)
    trusted = np.asarray(Image.fromarray(RGB).resize((32, 32), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(np.clip(found * 255, 0, 255) - trusted).max() < 1.5


@pytest.mark.parametrize("quality", [30, 50, 95])
def test_jpeg_equals_pillows(quality: int) -> None:
    """Both call libjpeg(-turbo) with 4:2:0; up to 2 levels between the builds' integer transforms, equal nearly everywhere."""
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "JPEG", quality=quality, subsampling=2)
    trusted = np.asarray(Image.open(out).convert("RGB")).astype(int)
    found = np.rint(operations.jpeg(X, Jpeg(quality=quality), NONE) * 255).astype(int)
    assert np.abs(found - trusted).max() <= 4
    assert np.abs(found - trusted).mean() < 0.1


def test_gaussian_noise() -> None:
    mid = np.full((512, 512, 3), 0.5, np.float32)
    noise = (operations.gaussian(mid, Gaussian(sigma=25.0, grey=False, purpose="t"), NONE) - 0.5) * 255
    assert abs(noise.std() - 25) < 25 * 4.5 / np.sqrt(2 * noise.size)
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 4.5 / 512
    grey = operations.gaussian(mid, Gaussian(sigma=25.0, grey=True, purpose="t"), NONE)
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_poisson_noise() -> None:
    """Variance at level x is scale^2 x / q; this ramp has 256 levels, so q = 256."""
    ramp = np.repeat(np.arange(256, dtype=np.float32)[None, :, None] / 255, 4096, axis=0)
    ramp = np.repeat(ramp, 3, axis=2)
    noise = operations.poisson(ramp, Poisson(scale=0.5, grey=False, purpose="t"), NONE) - ramp
    for level in (30, 128, 200):
        assert noise[:, level].var() == pytest.approx(0.25 * level / 255 / 256, rel=0.06)
        assert abs(noise[:, level].mean()) < 4.5 * np.sqrt(0.25 * level / 255 / 256 / (4096 * 3))
    grey = operations.poisson(ramp, Poisson(scale=0.5, grey=True, purpose="t"), NONE) - ramp
    assert np.abs(grey[:, 100:150, 0] - grey[:, 100:150, 1]).max() < 1e-6


def test_sharpen_against_plain_opencv() -> None:
    blurred = cv2.GaussianBlur(X, (51, 51), 0)
    residual = X - blurred
    mask = (np.abs(residual) * 255 > 10).astype(np.float32)
    soft = cv2.GaussianBlur(mask, (51, 51), 0)
    trusted = soft * np.clip(X + 0.5 * residual, 0, 1) + (1 - soft) * X
    found = operations.sharpen(X, SHARPEN, NONE)
    different = np.abs(found - trusted) > 1e-4  # a residual at the threshold may fall on either side
    assert different.mean() < 0.01
    assert np.abs(found - trusted).max() < 1e-2


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sample_is_the_same_in_any_batch_and_thread(preset: str) -> None:
    params = [draw(preset, 3, position, 128) for position in range(6)]
    x = rgb_to_unit([RGB] * 6)
    together = apply(x, params)
    assert together.shape == x.shape
    assert together.dtype == torch.float32
    assert torch.equal(together, apply(x, params, threads=3))
    assert torch.equal(together[3:5], apply(x[3:5], params[3:5]))
    for position in (5, 0):
        assert torch.equal(together[position : position + 1], apply(x[:1], [params[position]], "cpu"))
    levels = together * 255
    assert (levels - levels.round()).abs().max() < 1e-4  # on the levels of a file
    assert (float(together.min()) >= 0, float(together.max()) <= 1) == (True, True)
    assert np.array_equal(apply_rgb(RGB, params[2]), (together[2].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def test_opencv_threads_change_nothing() -> None:
    params = [draw("real_esrgan", 4, position, 128) for position in range(20)]
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = [degrade(X, p) for p in params]
        cv2.setNumThreads(4)
        four = [degrade(X, p) for p in params]
    finally:
        cv2.setNumThreads(before)
    assert all(np.array_equal(a, b) for a, b in zip(one, four, strict=True))
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(a, b) for a, b in zip(one, pool.map(lambda p: degrade(X, p), params), strict=True))


@pytest.mark.parametrize("size_px", [32, 64, 96, 250])
def test_any_size(size_px: int) -> None:
    x_HWC = cv2.resize(X, (size_px, size_px))
    for position in range(40):
        lq_HWC = degrade(x_HWC, draw("real_esrgan", 0, position, size_px))
        assert lq_HWC.shape == x_HWC.shape
        assert np.isfinite(lq_HWC).all()


def test_the_input_is_not_changed() -> None:
    before = X.copy()
    for preset in PRESETS:
        degrade(X, draw(preset, 0, 0, 128))
    assert np.array_equal(X, before)


def test_heavier_is_worse() -> None:
    """PSNR of the degraded picture, mean of 40 draws: Real-ESRGAN below its light variant, x8 below x4."""

    def psnr(preset: str) -> float:
        errors = [np.mean((degrade(X, draw(preset, 0, i, 128)) - X) ** 2) for i in range(40)]
        return float(np.mean(-10 * np.log10(errors)))

    assert psnr("real_esrgan") < psnr("light_stablesr")
    assert psnr("x8") < psnr("x4")
    assert psnr("x4_noise40") < psnr("x4")


def test_errors_teach() -> None:
    with pytest.raises(ValueError, match="draw it for that size_px"):
        degrade(X[:64], draw("x4", 0, 0, 128))
    with pytest.raises(ValueError, match="draw one for each"):
        apply(rgb_to_unit([RGB, RGB]), [draw("x4", 0, 0, 128)])


def test_rounding() -> None:
    assert np.array_equal(operations.round_levels(X + 0.001, Round(), NONE), X)
