"""Perceptual distance of two pictures: features of VGG-16, compared as LPIPS does (Zhang et al. 2018, Eq. 1). Weights are given by path.

One .safetensors file with torchvision's names of VGG-16 (`features.0.weight` … `features.28.bias`), and, for LPIPS, its linear weights
under its own names (`lin0.model.1.weight` … `lin4.model.1.weight`, each [1, channels, 1, 1]). Without them every channel counts alike.
Nothing is fetched: convert `vgg16-397923af.pth` of torchvision and `weights/v0.1/vgg.pth` of the package lpips once.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, relu

BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # torchvision's places of the convolutions, a pooling after each block
CHANNELS = (64, 128, 256, 512, 512)  # of each block of VGG-16
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS: from [-1, 1] to what VGG was trained on
EPSILON = 1e-10  # LPIPS
SMALLEST_PX = 2 ** (len(BLOCKS) - 1)


class PerceptualDistance(nn.Module):
    """d(a, b) = sum over five layers l of the mean over pixels of sum_c w_lc (f_lc(a) - f_lc(b))^2, f of length 1 at each pixel."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        """`tensors` as in the file; ValueError that names what is missing."""
        super().__init__()
        layers = [n for block in BLOCKS for n in block]
        wanted = [f"features.{n}.{kind}" for n in layers for kind in ("weight", "bias")]
        lines = [f"lin{i}.model.1.weight" for i in range(len(BLOCKS))]
        some_lines = any(name in tensors for name in lines)
        missing = [name for name in [*wanted, *(lines if some_lines else [])] if name not in tensors]
        if missing:
            raise ValueError(f"{len(missing)} tensors of VGG-16 or LPIPS are missing, first {missing[0]!r}: expected torchvision's names")
        for name in wanted:
            self.register_buffer(name.replace(".", "_"), tensors[name].detach().float())
        for i, block in enumerate(BLOCKS):
            channels = tensors[f"features.{block[-1]}.weight"].shape[0]
            weight = tensors[lines[i]].flatten() if some_lines else torch.full((channels,), 1.0 / channels)
            if len(weight) != channels:
                raise ValueError(f"{lines[i]} has {len(weight)} numbers for the {channels} channels of features.{block[-1]}")
            self.register_buffer(f"line_{i}", weight.detach().float())
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def forward(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """Distance of each pair of pictures in [-1, 1], fp32, [B]. Sides of 16 px or more."""
        if min(a_BCHW.shape[-2:]) < SMALLEST_PX:
            raise ValueError(f"pictures of {tuple(a_BCHW.shape[-2:])} px: VGG halves them four times and needs {SMALLEST_PX} px or more")
        with torch.autocast(a_BCHW.device.type, enabled=False):
            pairs = zip(self._features(a_BCHW.float()), self._features(b_BCHW.float()), strict=True)
            layers = [self._layer(i, a, b) for i, (a, b) in enumerate(pairs)]
        return torch.stack(layers).sum(dim=0)

    def _layer(self, i: int, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        weight_1C11 = self.get_buffer(f"line_{i}").view(1, -1, 1, 1)
        return (weight_1C11 * (_unit(a_BCHW) - _unit(b_BCHW)).square()).sum(dim=1).mean(dim=(1, 2))

    def _features(self, x_BCHW: Tensor) -> list[Tensor]:
        x, found = (x_BCHW - self.get_buffer("shift")) / self.get_buffer("scale"), []
        for i, block in enumerate(BLOCKS):
            x = max_pool2d(x, 2) if i else x
            for n in block:
                x = relu(conv2d(x, self.get_buffer(f"features_{n}_weight"), self.get_buffer(f"features_{n}_bias"), padding=1))
            found.append(x)
        return found


def _unit(x_BCHW: Tensor) -> Tensor:
    """Each pixel's features scaled to length 1."""
    return x_BCHW / (x_BCHW.square().sum(dim=1, keepdim=True).sqrt() + EPSILON)


def unfilled_perceptual() -> PerceptualDistance:
    """The distance in VGG-16's shapes with whatever numbers lie there: for counting, on fake or meta tensors."""
    tensors, before = {}, 3
    for block, channels in zip(BLOCKS, CHANNELS, strict=True):
        for n in block:
            tensors[f"features.{n}.weight"] = torch.empty(channels, before, 3, 3)
            tensors[f"features.{n}.bias"] = torch.empty(channels)
            before = channels
    return PerceptualDistance(tensors).requires_grad_(False).eval()


def load_perceptual(path: str | Path) -> PerceptualDistance:
    """The distance whose weights lie in a .safetensors file. ValueError if it is not there or lacks something."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise ValueError(f"no perceptual weights at {path}: give a .safetensors file of VGG-16 (supir_model/perceptual.py says how)")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no .safetensors file ({error}): pickled weights are not read; convert them first") from error
    return PerceptualDistance(tensors).requires_grad_(False).eval()
