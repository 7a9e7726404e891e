"""Photographs and captions for train_prior: a pool in memory, and crops that are a function of (seed, purpose, number)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.dataset import Dataset
from infra.holdout import is_held_out
from supir_model.degradation import apply_rgb, draw
from supir_model.degradation.streams import stream
from supir_model.images import decode, resize_short_side
from supir_model.presets import RELEASED_PROMPTS
from training.recipes_prior import PriorConfig

Rgb = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """One photograph at one size, uint8 [H, W, 3], and its caption."""

    rgb_HWC: Rgb
    caption: str


@dataclass(frozen=True)
class Crop:
    """A square crop, uint8 [S, S, 3], and the text that goes with it."""

    rgb_HWC: Rgb
    text: str


def load_pool(config: PriorConfig) -> list[Picture]:
    """Every accepted, captioned photograph at each of the short sides that it reaches, in the order of the shards.

    Raises ValueError if none is left.
    """
    dataset = Dataset(config.input)
    images, captions, takedowns = dataset.snapshot("images"), dataset.snapshot("captions"), dataset.takedowns()
    pool: list[Picture] = []
    for shard, ref in images.shards.items():
        said = {row["image_id"]: row["caption"] for row in dataset.read(captions.shards[shard], ["image_id", "caption"]).to_pylist()}
        for row in dataset.read(ref, ["image_id", "source_id", "bytes"]).to_pylist():
            gone = takedowns & {row["image_id"], row["source_id"]}
            if row["image_id"] in said and not gone and not is_held_out(row["image_id"], config.held_out_every):
                pool += _sizes(row["bytes"], said.pop(row["image_id"]), config)
    if not pool:
        raise ValueError(f"{config.input} holds no captioned photograph with a short side of {min(config.short_sides_px)} pixels or more")
    return pool


def _sizes(data: bytes, caption: str, config: PriorConfig) -> list[Picture]:
    rgb = decode(data).rgb_HWC
    return [Picture(resize_short_side(rgb, side), caption) for side in config.short_sides_px if side <= min(rgb.shape[:2])]


def crop_of(pool: list[Picture], seed: int, purpose: str, number: int, size_px: int, shuffled: float = 0.0) -> Crop:
    """Crop `number` of a purpose: picture, place and flip are drawn for it alone, and for a share `shuffled` the order of the channels."""
    rng = stream(seed, purpose, number)
    picture = pool[rng.integers(len(pool))]
    height, width = picture.rgb_HWC.shape[:2]
    y, x = rng.integers(height - size_px + 1), rng.integers(width - size_px + 1)
    crop = picture.rgb_HWC[y : y + size_px, x : x + size_px]
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    crop = crop[:, :, rng.permutation(3)] if rng.random() < shuffled else crop
    return Crop(np.ascontiguousarray(crop), picture.caption)


def prior_crop(pool: list[Picture], config: PriorConfig, number: int) -> Crop:
    """A crop for the UNet: now and then degraded, and then its text is the negative words."""
    size_px = config.unet.crop_px
    crop = crop_of(pool, config.seed, "prior/unet", number, size_px)
    if stream(config.seed, "prior/degraded", number).random() >= config.degraded_share:
        return crop
    return Crop(apply_rgb(crop.rgb_HWC, draw("real_esrgan", config.seed, number, size_px)), RELEASED_PROMPTS.negative)


def as_rows(crops: list[Crop]) -> Any:
    """Pixels of several crops, uint8 [N, S, S, 3]."""
    return np.stack([crop.rgb_HWC for crop in crops])
