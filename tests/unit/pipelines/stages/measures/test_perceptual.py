"""The perceptual hash on photographs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.stages.measures.perceptual import perceptual_hash
from pipelines.stages.measures.tiles import luma
from tests.helpers import photographs

cv2 = pytest.importorskip("cv2")


def test_the_hash_stays_near_under_small_changes_and_far_between_photographs() -> None:
    pictures = [np.array(Image.open(path).convert("RGB"))[:640, :640] for path in photographs(6)]
    hashes = [perceptual_hash(luma(rgb)) for rgb in pictures]
    for rgb, own in zip(pictures, hashes):
        half = cv2.resize(rgb, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        sink = io.BytesIO()
        Image.fromarray(rgb).save(sink, "JPEG", quality=60)
        brighter = np.clip(rgb * 0.9 + 20, 0, 255).astype(np.uint8)
        for changed in (half, np.array(Image.open(sink)), brighter):
            assert (perceptual_hash(luma(changed)) ^ own).bit_count() <= 4  # the recipes' radius
    apart = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 8


def test_flat_pictures_share_a_hash_and_any_size_has_one() -> None:
    assert len({perceptual_hash(np.full((90, 200), value, np.uint8)) for value in (1, 127, 255)}) == 1
    for size in [(1, 1), (1, 300), (300, 1), (2, 2)]:
        assert 0 <= perceptual_hash(np.random.default_rng(1).integers(0, 256, size).astype(np.uint8)) < 2**64
