"""The perceptual distance against LPIPS' formula written out with torch's own layers, with small random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from supir_model.perceptual import BLOCKS, load_perceptual

CHANNELS = (4, 6, 8, 10, 12)


def weights(lines: bool) -> dict[str, Tensor]:
    g, tensors, before = torch.Generator().manual_seed(0), {}, 3
    for i, (block, channels) in enumerate(zip(BLOCKS, CHANNELS, strict=True)):
        for n in block:
            tensors[f"features.{n}.weight"] = torch.randn(channels, before, 3, 3, generator=g) * 0.4
            tensors[f"features.{n}.bias"] = torch.randn(channels, generator=g) * 0.1
            before = channels
        if lines:
            tensors[f"lin{i}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=g)
    return tensors


def by_hand(tensors: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """torchvision's VGG-16 as a list of modules at its own places, and the sum of Zhang et al."""
    layers: list[nn.Module] = []
    for block in BLOCKS:
        for n in block:
            weight = tensors[f"features.{n}.weight"]
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            conv.weight.data, conv.bias.data = weight, tensors[f"features.{n}.bias"]  # type: ignore[union-attr]
            assert len(layers) == n
            layers += [conv, nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    features: list[list[Tensor]] = [[], []]
    for x, found in zip(((a - shift) / scale, (b - shift) / scale), features, strict=True):
        for n, layer in enumerate(layers):
            x = layer(x)
            if n in (3, 8, 15, 22, 29):  # relu1_2, 2_2, 3_3, 4_3, 5_3
                found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
    total = torch.zeros(len(a))
    for i, (f, g) in enumerate(zip(*features, strict=True)):
        weight = tensors.get(f"lin{i}.model.1.weight", torch.full((1, f.shape[1], 1, 1), 1 / f.shape[1]))
        total += (weight * (f - g) ** 2).sum(dim=1).mean(dim=(1, 2))
    return total.detach()


def pair() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    a = torch.rand(2, 3, 32, 32, generator=g) * 2 - 1
    return a, (a + 0.2 * torch.randn(a.shape, generator=g)).clamp(-1, 1)


@pytest.mark.parametrize("lines", [True, False], ids=["LPIPS", "VGG alone"])
def test_it_is_the_published_formula(tmp_path: Path, lines: bool) -> None:
    save_file(weights(lines), tmp_path / "vgg.safetensors")
    distance, (a, b) = load_perceptual(tmp_path / "vgg.safetensors"), pair()
    assert torch.allclose(distance(a, b), by_hand(weights(lines), a, b), rtol=1e-5)  # the same fp32 sums in another order
    assert torch.equal(distance(a, a), torch.zeros(2))
    assert (distance(a, b) > 0).all()
    assert list(distance.parameters()) == [], "nothing that an optimizer could move"


def test_gradients_reach_the_pictures(tmp_path: Path) -> None:
    save_file(weights(True), tmp_path / "vgg.safetensors")
    a, b = pair()
    load_perceptual(tmp_path / "vgg.safetensors")(a.requires_grad_(True), b).sum().backward()
    assert a.grad is not None
    assert a.grad.abs().sum() > 0


def test_what_cannot_be_used_teaches(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no perceptual weights at"):
        load_perceptual(tmp_path / "nowhere")
    (tmp_path / "vgg.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="pickled weights are not read"):
        load_perceptual(tmp_path / "vgg.pth")
    part = weights(True)
    del part["lin2.model.1.weight"]
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors of VGG-16 or LPIPS are missing, first 'lin2\.model\.1\.weight'"):
        load_perceptual(tmp_path / "part.safetensors")
    save_file(weights(False), tmp_path / "vgg.safetensors")
    with pytest.raises(ValueError, match="needs 16 px or more"):
        load_perceptual(tmp_path / "vgg.safetensors")(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
