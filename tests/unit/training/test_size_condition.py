"""SDXL's size condition says where the crop came from: the pixels that it names are the crop's."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from supir_model import images
from supir_model.crops import Crop
from tests.corpora import corpus
from training import record
from training.batches import Batches
from training.recipes import adaptor_tiny
from training.size_condition import size_ids


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("short_side_px", [None, 96])
def test_the_pixels_that_it_names_are_the_crops(mirrored: bool, short_side_px: int | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (130, 210, 3)).astype(np.uint8)
    data, crop_px, u_y, u_x = images.encode_png(pixels), 64, 0.3, 0.8
    found = size_ids(data, Crop(size_px=crop_px, short_side_px=short_side_px, u_y=u_y, u_x=u_x, mirrored=mirrored))
    assert found[:2] == (130, 210)
    assert found[4:] == (64, 64)
    resized = images.resize_short_side(pixels, short_side_px or 130)
    crop = images.crop(resized, crop_px, u_y=u_y, u_x=u_x)
    seen, whole = (crop[:, ::-1], resized[:, ::-1]) if mirrored else (crop, resized)
    assert np.array_equal(seen, whole[found.top : found.top + crop_px, found.left : found.left + crop_px])


def test_a_turned_photograph_is_measured_upright() -> None:
    out, exif = io.BytesIO(), Image.Exif()
    exif[images.ORIENTATION_TAG] = 6
    Image.new("RGB", (200, 100)).save(out, "JPEG", exif=exif)
    assert size_ids(out.getvalue(), Crop(size_px=64))[:2] == (200, 100) == images.decode(out.getvalue()).rgb_HWC.shape[:2]


def test_samples_bring_it_where_the_recipe_says_so(tmp_path: Path) -> None:
    tiny = adaptor_tiny()
    config = replace(tiny, input=corpus(tmp_path / "c"), negatives_weight=0.0, batch=replace(tiny.batch, crop_px=64, short_side_px=96))
    sources = record.survey(config, captions=True).sources
    assert Batches(sources, seed=0, options=config.batch, world=1).sample(0).size_ids is None
    own = Batches(sources, seed=0, options=replace(config.batch, true_sizes=True), world=1)
    _, row, gt_HWC = own.ground_truth(5)
    found = own.sample(5).size_ids
    assert found is not None
    resized = images.resize_short_side(images.decode(row["bytes"]).rgb_HWC, 96)
    place = slice(found.top, found.top + 64), slice(found.left, found.left + 64)
    assert any(np.array_equal(gt_HWC, whole[place]) for whole in (resized, resized[:, ::-1]))
