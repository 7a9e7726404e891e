"""What callers may hand to SupirPipeline, and what they get: the many forms of images, prompts and seeds, each made one."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from supir_model.images import decode, model_to_unit, unit_to_rgb
from supir_model.preprocess import Sizes, from_network, to_output_size

OneImage = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor
Images = OneImage | Sequence[OneImage]
OneGenerator = int | torch.Generator
Generators = OneGenerator | Sequence[OneGenerator] | None
Output = Literal["pil", "np", "pt", "latent"]
SEED_BITS = 63


def pictures_of(image: Images) -> list[np.ndarray[Any, Any]]:
    """uint8 RGB [H, W, 3] of every image, upright. ValueError for what is no image; floats are rounded to 8 bits."""
    several = image if isinstance(image, list | tuple) else _batch(image)
    if not several:
        raise ValueError("no image was given: pass one, or a list of them")
    return [_picture(one) for one in several]


def one_each(value: str | Sequence[str], count: int, name: str) -> list[str]:
    """One text an image from one for all or a list."""
    values = [value] * count if isinstance(value, str) else list(value)
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries for {count} images: pass one text for all, or one each")
    return values


def seeds_of(generator: Generators, count: int) -> list[int]:
    """One seed an image: the number itself, 63 bits drawn from a generator, or fresh ones. Global generators are left alone."""
    if generator is None:
        return [secrets.randbits(SEED_BITS) for _ in range(count)]
    several = [generator] * count if isinstance(generator, int | torch.Generator) else list(generator)
    if len(several) != count:
        raise ValueError(f"generator has {len(several)} entries for {count} images: pass one for all, or one each")
    return [one if isinstance(one, int) else _drawn(one) for one in several]


def to_output(x_BCHW: Tensor, sizes: Sizes, kind: Output) -> Any:
    """The one picture of `x_BCHW`, in about [-1, 1], at the given-back size."""
    if kind == "pil":
        return Image.fromarray(from_network(x_BCHW, sizes)[0])
    if kind not in ("np", "pt"):
        raise ValueError(f"output_type is {kind!r}, expected 'pil', 'np', 'pt' or 'latent'")
    x_CHW = model_to_unit(to_output_size(x_BCHW, sizes))[0]
    return x_CHW if kind == "pt" else x_CHW.permute(1, 2, 0).cpu().numpy()


def _drawn(generator: torch.Generator) -> int:
    return int(torch.randint(0, 2**SEED_BITS - 1, (), generator=generator, device=generator.device))


def _batch(image: Any) -> Sequence[Any]:
    return list(image) if isinstance(image, np.ndarray | Tensor) and image.ndim == 4 else [image]


def _picture(image: OneImage) -> np.ndarray[Any, Any]:
    if isinstance(image, str | Path):
        try:
            return decode(Path(image).expanduser().read_bytes()).rgb_HWC
        except OSError as error:
            raise ValueError(f"{image} cannot be read ({error.strerror}): pass the path of an image file") from error
    if isinstance(image, Image.Image):
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    if isinstance(image, np.ndarray) and image.dtype.kind == "f" and image.ndim == 3 and image.shape[2] == 3:  # diffusers' "np"
        return _rounded(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
    if isinstance(image, Tensor) and image.is_floating_point() and image.ndim == 3 and len(image) == 3:
        return _rounded(image)
    found = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, np.ndarray | Tensor) else type(image).__name__
    raise ValueError(
        f"an image came in as {found}; expected a path, a PIL image, uint8 or floats in [0, 1] of shape [H, W, 3] (numpy), or a float "
        "tensor in [0, 1] of shape [3, H, W]"
    )


def _rounded(x_unit_CHW: Tensor) -> np.ndarray[Any, Any]:
    low, high = float(x_unit_CHW.min()), float(x_unit_CHW.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"an image of floats reaches from {low:.3g} to {high:.3g}, expected [0, 1]: scale it first")
    rgb_HWC: np.ndarray[Any, Any] = unit_to_rgb(x_unit_CHW[None])[0]
    return rgb_HWC
