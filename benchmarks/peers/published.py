"""Real-ESRGAN's published degradation, by the functions of BasicSR themselves (`pip install basicsr`), as its training calls them.

The training's own method cannot be called without its GAN and a GPU, so the order of calls is repeated here: batches of tensors, kernels
padded to 21 x 21 and applied by grouped convolutions, torch's Poisson, the differentiable JPEG. Resize, the kind of noise, whether the
second blur comes and the order of the last steps are drawn once for a batch, as there. Sharpening is apart.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

FORMS = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
MIXTURE = [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
SIZES_PX = range(7, 23, 2)
ORDERS = (  # sigma of blur, (up, down, keep), factors, sigma of noise, scale of Poisson
    ((0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3.0)),
    ((0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5)),
)
QUALITY, GREY, DOWNSCALE, SINC, SECOND_BLUR, FINAL_SINC = (30, 95), 0.4, 4, 0.1, 0.8, 0.8


def is_installed() -> bool:
    return importlib.util.find_spec("basicsr") is not None and importlib.util.find_spec("torchvision") is not None


def functions() -> Any:
    """BasicSR's modules without what their packages import beside them; old names of torchvision are given back to it."""
    _torchvision()
    found = importlib.util.find_spec("basicsr")
    assert found is not None and found.origin is not None, "basicsr is not installed"  # noqa: PT018
    for name in ("basicsr", "basicsr.utils", "basicsr.data"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(found.origin).parent.joinpath(*name.split(".")[1:]))]
        sys.modules.setdefault(name, package)
    from basicsr.data import degradations
    from basicsr.utils.diffjpeg import DiffJPEG
    from basicsr.utils.img_process_util import USMSharp, filter2D

    return types.SimpleNamespace(draws=degradations, jpeg=DiffJPEG(differentiable=False), sharpen=USMSharp(), filter2D=filter2D)


def _torchvision() -> None:
    """A CPU build of torch has no compiled operators of torchvision: their declarations are enough for its import."""
    try:
        import torchvision.transforms.functional as functional
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        _torchvision.library = torch.library.Library("torchvision", "DEF")  # type: ignore[attr-defined]  # lives as long as it is held
        for operator in ("nms", "qnms"):
            _torchvision.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[attr-defined]
        import torchvision.transforms.functional as functional
    moved = types.ModuleType("torchvision.transforms.functional_tensor")
    moved.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules[moved.__name__] = moved


class Published:
    """Batches of degradations; `draw` gives what its data loader would have drawn, `apply` what its training step does with it."""

    def __init__(self, seed: int) -> None:
        self.basicsr = functions()
        self._chance = np.random.default_rng(seed)
        torch.manual_seed(seed)
        np.random.seed(seed)  # BasicSR draws its kernels from the global generators
        import random

        random.seed(seed)

    def draw(self, batch: int) -> list[torch.Tensor]:
        """Three stacks of kernels [batch, 21, 21]: of both orders, and the final sinc or the identity."""
        rows = [(self._kernel(0), self._kernel(1), self._final()) for _ in range(batch)]
        return [torch.from_numpy(np.stack(kernels)).float() for kernels in zip(*rows, strict=True)]

    def _kernel(self, order: int) -> np.ndarray:
        size_px = int(self._chance.choice(SIZES_PX))
        if self._chance.random() < SINC:
            low = math.pi / 3 if size_px < 13 else math.pi / 5
            values = self.basicsr.draws.circular_lowpass_kernel(self._chance.uniform(low, math.pi), size_px, pad_to=False)
        else:
            sigma = ORDERS[order][0]
            values = self.basicsr.draws.random_mixed_kernels(
                FORMS, MIXTURE, size_px, sigma, sigma, [-math.pi, math.pi], (0.5, 4), (1, 2), noise_range=None
            )
        return np.pad(values, (21 - size_px) // 2)

    def _final(self) -> np.ndarray:
        if self._chance.random() < FINAL_SINC:
            cutoff = self._chance.uniform(math.pi / 3, math.pi)
            return np.asarray(self.basicsr.draws.circular_lowpass_kernel(cutoff, int(self._chance.choice(SIZES_PX)), pad_to=21))
        return np.pad(np.ones((1, 1)), 10)

    @torch.no_grad()
    def apply(self, x_BCHW: torch.Tensor, kernels: list[torch.Tensor]) -> torch.Tensor:
        """[0, 1] -> the LQ picture of a quarter of the side, on 8-bit levels."""
        side, lq_px = x_BCHW.shape[-1], x_BCHW.shape[-1] // DOWNSCALE
        x_BCHW = self._filter(x_BCHW, kernels[0])
        x_BCHW = self._jpeg(self._noise(self._resize(x_BCHW, 0, side), 0))
        if self._chance.random() < SECOND_BLUR:
            x_BCHW = self._filter(x_BCHW, kernels[1])
        x_BCHW = self._noise(self._resize(x_BCHW, 1, lq_px), 1)
        jpeg_last = self._chance.random() < 0.5
        x_BCHW = x_BCHW if jpeg_last else self._jpeg(x_BCHW)
        x_BCHW = self._filter(interpolate(x_BCHW, size=(lq_px, lq_px), mode=self._mode()), kernels[2])
        x_BCHW = self._jpeg(x_BCHW) if jpeg_last else x_BCHW
        return torch.clamp((x_BCHW * 255.0).round(), 0, 255) / 255.0

    def _filter(self, x_BCHW: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        return self.basicsr.filter2D(x_BCHW.contiguous(), kernels)  # torch keeps the JPEG's order of axes now, which `view` refuses

    def _mode(self) -> str:
        return str(self._chance.choice(["area", "bilinear", "bicubic"]))

    def _resize(self, x_BCHW: torch.Tensor, order: int, base_px: int) -> torch.Tensor:
        _, split, (low, high), *_ = ORDERS[order]
        ends = ((1.0, high), (low, 1.0), (1.0, 1.0))[int(self._chance.choice(3, p=split))]
        px = int(base_px * self._chance.uniform(*ends))
        return interpolate(x_BCHW, size=(px, px), mode=self._mode())

    def _noise(self, x_BCHW: torch.Tensor, order: int) -> torch.Tensor:
        sigma, scale = ORDERS[order][3:]
        common = {"gray_prob": GREY, "clip": True, "rounds": False}
        if self._chance.random() < 0.5:
            return self.basicsr.draws.random_add_gaussian_noise_pt(x_BCHW, sigma_range=sigma, **common)
        return self.basicsr.draws.random_add_poisson_noise_pt(x_BCHW, scale_range=scale, **common)

    def _jpeg(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        quality_B = x_BCHW.new_zeros(len(x_BCHW)).uniform_(*QUALITY)
        return self.basicsr.jpeg(x_BCHW.clamp(0, 1), quality=quality_B)
