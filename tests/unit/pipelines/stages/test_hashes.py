"""The perceptual hash on photographs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.contamination import boxes
from pipelines.corpus_facts import EXCLUDE_RADIUS
from pipelines.stages.hashes import (
    LEAST_QUALITY,
    PARTS,
    cropped_hashes,
    distance,
    flipped_distance,
    measure_hashes,
    mirrored,
    perceptual_hash,
    spans,
    to_words,
    turned,
)
from pipelines.stages.measures.tiles import luma
from supir_model.images import decode
from tests.helpers import photographs

RADIUS = 31  # of the recipes


@pytest.fixture(scope="module")
def greys() -> list[np.ndarray]:
    return [luma(decode(path.read_bytes()).rgb_HWC[:640, :640]) for path in photographs(6)]


def hashed(grey_HW: np.ndarray) -> np.ndarray:
    return to_words(perceptual_hash(np.ascontiguousarray(grey_HW)))


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(distance(hashed(one), hashed(other)).min())


def _middle(grey_HW: np.ndarray, share: float) -> np.ndarray:
    height, width = (round(side * (1 - share) / 2) for side in grey_HW.shape)
    return grey_HW[height:-height, width:-width]


def _corner(grey_HW: np.ndarray, share: float) -> np.ndarray:
    height, width = grey_HW.shape
    return grey_HW[:round(height * share), width - round(width * share):]


def test_the_hash_stays_near_under_small_changes_and_far_between_photographs(greys: list[np.ndarray]) -> None:
    for grey in greys:
        quarter = cv2.resize(grey, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        jpeg = cv2.imdecode(cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_GRAYSCALE)
        for changed in (quarter, jpeg, np.clip(grey * 0.9 + 20, 0, 255).astype(np.uint8), cv2.GaussianBlur(grey, (0, 0), 2)):
            assert apart(changed, grey) <= RADIUS
        assert apart(grey[4:-4, 4:-4], grey) <= RADIUS  # a crop by 2 % and less
    assert min(apart(a, b) for i, a in enumerate(greys) for b in greys[:i]) > 2 * RADIUS


def test_the_eight_forms_follow_from_the_bits(greys: list[np.ndarray]) -> None:
    grey = greys[0]
    own = hashed(grey)
    for picture in (grey, grey[:, ::-1], grey[::-1], grey[::-1, ::-1]):
        assert flipped_distance(own, hashed(picture)) <= 2  # a coefficient of almost nothing
        assert flipped_distance(turned(own), hashed(picture.T)) <= 2
    assert distance(mirrored(own), hashed(grey[:, ::-1])) <= 2
    assert distance(turned(own), hashed(grey.T)) <= 2
    assert np.array_equal(mirrored(mirrored(own)), turned(turned(own)))


def test_the_least_of_four_flips_is_told() -> None:
    some = np.random.default_rng(0).integers(0, 2**64, (50, 4), dtype=np.uint64)
    one, other = some[:25], some[25:]
    down = other ^ np.array([2**64 - 1, 2**64 - 1, 0, 0], np.uint64)  # odd vertical frequencies
    expected = np.min([distance(one, each) for each in (other, mirrored(other), down, mirrored(down))], axis=0)
    assert np.array_equal(flipped_distance(one, other), expected)


def test_crops_at_the_middle_and_the_corners_are_near_to_the_column_of_crops(greys: list[np.ndarray]) -> None:
    for grey in greys:
        crops = to_words(bytes.fromhex(measure_hashes(grey)["phash_crops"]))
        for cropped in (_middle(grey, 0.92), _corner(grey, 0.95), _corner(grey, 0.93)):
            assert distance(crops, hashed(cropped)).min() <= RADIUS
        corner = (spans(0.8, [0])[0], spans(0.8, [1])[0])
        assert distance(cropped_hashes(grey, [corner]), hashed(_corner(grey, 0.8))).min() <= RADIUS


def test_a_rectangle_cut_anywhere_is_near_to_a_box_of_a_test_picture(greys: list[np.ndarray]) -> None:
    for grey in greys[:3]:
        forms = cropped_hashes(grey, boxes(*grey.shape))
        for top, bottom, left, right in ((0.1, 0, 0, 0.2), (0, 0.05, 0.12, 0.1), (0.02, 0.22, 0.05, 0)):
            height, width = grey.shape
            cropped = grey[round(height * top):round(height * (1 - bottom)), round(width * left):round(width * (1 - right))]
            assert flipped_distance(forms, hashed(cropped[:, ::-1])).min() <= EXCLUDE_RADIUS


def test_flat_pictures_are_known_and_any_size_has_a_hash(greys: list[np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    assert measure_hashes(np.full((90, 200), 127, np.uint8))["phash_quality"] == 0
    assert measure_hashes(rng.integers(120, 122, (300, 300)).astype(np.uint8))["phash_quality"] < LEAST_QUALITY
    assert min(measure_hashes(grey)["phash_quality"] for grey in greys) > LEAST_QUALITY
    for size in [(1, 1), (1, 300), (300, 1), (2, 2), (1, 5000), (5000, 1)]:
        grey_HW = rng.integers(0, 256, size).astype(np.uint8)
        assert len(perceptual_hash(grey_HW)) == 32
        with np.errstate(all="raise"):
            assert len(measure_hashes(grey_HW)["phash_parts"]) == PARTS * 64
