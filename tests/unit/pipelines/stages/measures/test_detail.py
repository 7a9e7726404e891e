"""Sharpness, flatness and noise: closed forms, and what they say of photographs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.stages.measures import detail, rows, tiles
from tests.unit.pipelines.stages.measures.pictures import crops


def grey(value_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.asarray(value_HW, dtype=np.uint8)


def sharpness(grey_HW: NDArray[np.uint8]) -> float:
    return detail.sharpness(detail.laplacian_tiles(rows.some_rows(grey_HW)))


def flatness(grey_HW: NDArray[np.uint8]) -> float:
    return detail.flatness(rows.some_rows(grey_HW))


def noise(grey_HW: NDArray[np.uint8]) -> float:
    return detail.noise(rows.some_rows(grey_HW))


def test_sharpness_of_a_chessboard_is_its_closed_form() -> None:
    chess_HW = grey(np.indices((256, 256)).sum(0) % 2 * 10)
    # every Laplacian is +-4 * 10, the borders' (OpenCV reflects without the edge pixel) too: mean 0, variance 40^2
    assert sharpness(chess_HW) == pytest.approx(1600, rel=1e-4)
    assert sharpness(grey(np.full((256, 256), 77))) == 0


def test_flatness_counts_tiles() -> None:
    rng = np.random.default_rng(0)
    half_HW = np.full((256, 512), 128)
    half_HW[:, :256] = rng.integers(0, 256, (256, 256))
    assert flatness(grey(half_HW)) == 0.5 - 2 / 8  # the two tiles beside the noise hold its edge
    assert flatness(grey(np.full((100, 60), 3))) == 1  # smaller than a tile: one tile
    ramp_HW = np.broadcast_to(np.arange(512) / 2, (256, 512))
    assert flatness(grey(ramp_HW)) == 1  # an even gradient is as flat as a clear sky


@pytest.mark.parametrize("sigma", [2, 5, 15])
def test_noise_of_known_strength_is_found(sigma: float) -> None:
    noisy_HW = np.random.default_rng(1).normal(128, sigma, (512, 512)).round()
    assert noise(grey(noisy_HW)) == pytest.approx(np.hypot(sigma, np.sqrt(1 / 12)), rel=0.06)  # the lowest tenth of 64 tiles


def test_noise_is_not_asked_of_what_is_black_or_white() -> None:
    assert noise(grey(np.zeros((256, 256)))) == 0
    half_HW = np.random.default_rng(1).normal(128, 5, (256, 256))
    half_HW[:, :160] = 255
    assert noise(grey(half_HW)) == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("group_bytes", [1, rows.GROUP_BYTES])  # tiles one after another, and side by side
def test_rows_of_tiles_give_what_the_whole_picture_gives(group_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels around a tile are those of the picture, so no filter sees an edge that is none."""
    monkeypatch.setattr(rows, "GROUP_BYTES", group_bytes)
    grey_HW = tiles.luma(crops()[0])[:300, :400]
    whole_HW = cv2.Laplacian(grey_HW, cv2.CV_64F, ksize=1)
    expected = [[whole_HW[y:y + 64:3, x:x + 128].var() for x in (0, 128, 256)] for y in (0, 128)]
    some = rows.some_rows(grey_HW)
    assert len(some) == (2 if group_bytes == 1 else 1)
    np.testing.assert_allclose(detail.laplacian_tiles(some), expected, rtol=1e-5)  # sums in float32


IMMERKAER = np.outer([1, -2, 1], [1, -2, 1])
FILTERS = {  # as OpenCV computes them of whole pictures
    "Sobel across": (lambda one: rows.first_difference(one.smooth_RX), lambda grey_HW: cv2.Sobel(grey_HW, cv2.CV_16S, 1, 0)),
    "Sobel down": (lambda one: rows.smoothed(one.slope_RX), lambda grey_HW: cv2.Sobel(grey_HW, cv2.CV_16S, 0, 1)),
    "Immerkaer": (lambda one: rows.second_difference(one.curve_RX), lambda grey_HW: cv2.filter2D(grey_HW, cv2.CV_16S, IMMERKAER)),
    "pixels": (lambda one: one.here_RX, lambda grey_HW: grey_HW),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (64, 5), (65, 300), (127, 129), (256, 40)])
def test_filters_of_rows_are_those_of_the_picture(size: tuple[int, int], name: str) -> None:
    ours, opencv = FILTERS[name]
    grey_HW = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    whole_HW = opencv(grey_HW)
    tall, high = min(size[0], 128), min(size[0], 64)
    expected = [whole_HW[top:top + high:rows.EVERY] for top in range(0, size[0] - tall + 1, tall)]
    found = [side for one in rows.some_rows(grey_HW) for side in np.split(ours(one), one.tiles, axis=1)]
    np.testing.assert_array_equal([one[:, 1:-1] for one in found], expected)


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1000])
def test_a_percentile_is_numpys_to_the_last_bit(count: int) -> None:
    values = np.random.default_rng(count).normal(0, 1e3, count)
    for percent in (0, 10, 33.3, 50, 75, 100):
        assert tiles.percentile(values, percent) == np.percentile(values, percent)


def test_what_lies_beside_whole_tiles_does_not_count() -> None:
    flat_HW = np.full((130, 130), 9)
    flat_HW[129, 129] = 255
    assert sharpness(grey(flat_HW)) == 0


def test_what_is_no_picture_is_refused() -> None:
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            tiles.luma(wrong)
