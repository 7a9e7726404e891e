"""Sharpness, flatness and the perceptual hash: closed forms, and what they say of photographs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.stages import measures
from tests.helpers import photographs

cv2 = pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    return [np.array(Image.open(path).convert("RGB"))[:640, :640] for path in photographs(6)]


def grey(value_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.asarray(value_HW, dtype=np.uint8)


def test_sharpness_of_a_chessboard_is_its_closed_form() -> None:
    chess_HW = grey(np.indices((256, 256)).sum(0) % 2 * 10)
    # every Laplacian is +-4 * 10, the borders' (OpenCV reflects without the edge pixel) too: mean 0, variance 40^2
    assert measures.sharpness(chess_HW) == pytest.approx(1600, rel=1e-4)
    assert measures.sharpness(grey(np.full((256, 256), 77))) == 0


def test_flatness_counts_tiles() -> None:
    rng = np.random.default_rng(0)
    half_HW = np.full((256, 512), 128)
    half_HW[:, :256] = rng.integers(0, 256, (256, 256))
    assert measures.flatness(grey(half_HW)) == 0.5 - 2 / 8  # the two tiles beside the noise hold its edge
    assert measures.flatness(grey(np.full((100, 60), 3))) == 1  # smaller than a tile: one tile
    ramp_HW = np.broadcast_to(np.arange(512) / 2, (256, 512))
    assert measures.flatness(grey(ramp_HW)) == 1  # an even gradient is as flat as a clear sky


def test_blur_makes_photographs_less_sharp_and_more_flat(pictures: list[NDArray[np.uint8]]) -> None:
    for rgb_HWC in pictures:
        before, after = measures.luma(rgb_HWC), measures.luma(cv2.GaussianBlur(rgb_HWC, (0, 0), 6))
        assert measures.sharpness(after) < 0.1 * measures.sharpness(before)
        assert measures.flatness(after) >= measures.flatness(before)


def test_what_lies_beside_whole_tiles_does_not_count() -> None:
    flat_HW = np.full((130, 130), 9)
    flat_HW[129, 129] = 255
    assert measures.sharpness(grey(flat_HW)) == 0


def test_the_hash_stays_near_under_small_changes_and_far_between_photographs(pictures: list[NDArray[np.uint8]]) -> None:
    hashes = [measures.perceptual_hash(measures.luma(rgb)) for rgb in pictures]
    for rgb, own in zip(pictures, hashes):
        half = cv2.resize(rgb, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        sink = io.BytesIO()
        Image.fromarray(rgb).save(sink, "JPEG", quality=60)
        brighter = np.clip(rgb * 0.9 + 20, 0, 255).astype(np.uint8)
        for changed in (half, np.array(Image.open(sink)), brighter):
            assert (measures.perceptual_hash(measures.luma(changed)) ^ own).bit_count() <= 4  # the recipes' radius
    apart = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 8


def test_flat_pictures_share_a_hash() -> None:
    assert len({measures.perceptual_hash(grey(np.full((90, 200), value))) for value in (1, 127, 255)}) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (127, 129), (2, 2)])
def test_any_size_can_be_measured(size: tuple[int, int]) -> None:
    any_HW = np.random.default_rng(1).integers(0, 256, size).astype(np.uint8)
    assert measures.sharpness(any_HW) >= 0
    assert 0 <= measures.flatness(any_HW) <= 1
    assert 0 <= measures.perceptual_hash(any_HW) < 2**64


def test_what_is_no_picture_is_refused() -> None:
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            measures.luma(wrong)
