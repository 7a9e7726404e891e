"""Photographs degraded on purpose: each measure moves the way it must, and those that should not care stay."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from pipelines.stages.measures import MEASURES, compression, measure, tiles
from supir_model.images import encode_png, sniff
from tests.unit.pipelines.stages.measures import pictures
from tests.unit.pipelines.stages.measures.pictures import Rgb, crops

LIGHT = {"dark_share": 0.02, "bright_share": 0.02, "colourfulness": 4, "saturation": 0.05, "entropy": 0.25}  # what averaging moves
FRAME = {"border_px": 0.0, "seam": 0.15}  # the worst of a thousand lines of 512 px


def of(rgb_HWC: Rgb) -> dict[str, float]:
    grey_HW = tiles.luma(rgb_HWC)
    found = measure(rgb_HWC, grey_HW, tiles.halved(grey_HW, tiles.SMALL_PX), 0, None)
    return {name: np.nan if value is None else value for name, value in found.items()}


@cache
def originals() -> list[dict[str, float]]:
    return [of(rgb_HWC) for rgb_HWC in crops()]


def failing(names: dict[str, bool], before: dict[str, float], after: dict[str, float]) -> dict[str, tuple[float, float]]:
    return {name: (before[name], after[name]) for name, good in names.items() if not good}


def check(degrade: Callable[[Rgb], Rgb], moves: dict[str, Callable[[float, float], bool]], stays: dict[str, float]) -> None:
    for rgb_HWC, before in zip(crops(), originals()):
        after = of(degrade(rgb_HWC))
        assert failing({name: right(before[name], after[name]) for name, right in moves.items()}, before, after) == {}
        assert failing({name: abs(after[name] - before[name]) <= by for name, by in stays.items()}, before, after) == {}


def test_compression_shows_as_blocks() -> None:
    check(lambda x: pictures.jpeg(x, 30), {"blockiness": lambda a, b: b > 0.1 > a},
          LIGHT | {"border_px": 0.0, "cutoff": 0.1})


def test_more_compression_shows_as_more_blocks_and_a_crop_hides_nothing() -> None:
    for rgb_HWC in crops():
        found = [of(pictures.jpeg(rgb_HWC, quality))["blockiness"] for quality in (95, 75, 50, 30, 10)]
        assert found == sorted(found)
        cropped = of(pictures.jpeg(rgb_HWC, 30)[3:, 5:])["blockiness"]
        assert cropped == pytest.approx(found[3], rel=0.1)  # three rows and five columns less


def test_blur_takes_detail_and_nothing_else() -> None:
    check(lambda x: pictures.blurred(x, 2),
          {"sharpness": lambda a, b: b < 0.1 * a, "cutoff": lambda a, b: b < 0.4, "flatness": lambda a, b: b >= a,
           "overshoot": lambda a, b: np.isnan(b) or b < a}, LIGHT | FRAME | {"blockiness": 0.03})


def test_noise_is_measured_and_does_not_pass_for_blocks_or_colour() -> None:
    check(lambda x: pictures.noisy(x, 8),
          {"noise": lambda a, b: b == pytest.approx(np.hypot(a, 8), rel=0.25), "repeats": lambda a, b: b < 0.1,
           "sharpness": lambda a, b: b > a}, LIGHT | FRAME | {"blockiness": 0.03})


@pytest.mark.parametrize(("factor", "most"), [(1.5, 0.8), (2, 0.72), (4, 0.4)])
def test_what_was_enlarged_is_found_by_its_spectrum(factor: float, most: float) -> None:
    assert min(one["cutoff"] for one in originals()) > 0.82
    check(lambda x: pictures.enlarged(x, factor), {"cutoff": lambda a, b: b < most, "sharpness": lambda a, b: b < a},
          LIGHT | FRAME | {"blockiness": 0.03})


def test_sharpening_shows_beside_edges() -> None:
    check(lambda x: pictures.sharpened(x, 2), {"overshoot": lambda a, b: b > a + 0.05, "sharpness": lambda a, b: b > 2 * a},
          {"border_px": 0.0, "colourfulness": 9, "blockiness": 0.05, "cutoff": 0.1})


def test_exposure_shows_as_what_is_clipped() -> None:
    steady = {"border_px": 0.0, "blockiness": 0.05}
    check(lambda x: pictures.exposed(x, 1.5, 120), {"bright_share": lambda a, b: b > a + 0.02}, steady)
    check(lambda x: pictures.exposed(x, 1, -150), {"dark_share": lambda a, b: b > a + 0.02}, steady)


def test_what_has_no_colour_measures_none_and_else_the_same() -> None:
    same = {name: 0.02 * max(abs(one[name]) for one in originals()) for name in ("sharpness", "noise", "cutoff", "entropy", "seam")}
    check(pictures.grey, {"colourfulness": lambda a, b: b == 0 < a, "saturation": lambda a, b: b == 0 < a}, same)


@pytest.mark.parametrize("value", [0, 255])
def test_bars_are_measured_to_the_pixel(value: int) -> None:
    inside = {"colourfulness": 25.0, "cutoff": 0.1}
    check(lambda x: pictures.framed(x, 40, value), {"border_px": lambda a, b: b == 40 and a == 0}, inside)
    check(lambda x: pictures.jpeg(pictures.framed(x, 40, value), 75), {"border_px": lambda a, b: abs(b - 40) <= 8}, {})
    check(lambda x: np.ascontiguousarray(pictures.framed(x, 40, value).transpose(1, 0, 2)), {"border_px": lambda a, b: b == 40}, inside)


def test_a_dark_sky_is_no_bar() -> None:
    night_HWC = (np.linspace(0, 90, 512)[:, None, None] * np.ones((1, 512, 3))).astype(np.uint8)
    assert of(night_HWC)["border_px"] == 0


def test_collages_and_windows_have_seams() -> None:
    assert max(one["seam"] for one in originals()) < 0.35
    made = pictures.collage(crops())
    assert of(made)["seam"] > 0.6
    assert of(pictures.jpeg(made, 75))["seam"] > 0.6
    window = of(pictures.screenshot(crops()[0]))
    assert window["seam"] > 0.9
    assert window["repeats"] > 0.85 > max(one["repeats"] for one in originals())
    assert window["entropy"] < 4 < min(one["entropy"] for one in originals())


def test_text_on_calm_ground_is_measured_by_its_area() -> None:
    assert max(one["text_area"] for one in originals()) < 0.02
    for rgb_HWC in crops():
        found = [of(pictures.written(rgb_HWC, 16, lines, banner=True))["text_area"] for lines in (2, 6)]
        assert 0.03 < found[0] < found[1] < 0.5
    for size_px in (16, 24, 32):
        page = pictures.page(size_px)
        assert of(page)["text_area"] > 0.2
        assert of(pictures.jpeg(page, 50))["text_area"] > 0.2
        assert of(np.ascontiguousarray(255 - page))["text_area"] > 0.2
        assert of(np.ascontiguousarray(page.transpose(1, 0, 2)))["text_area"] < 0.1  # lines from top to bottom are not found


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_is_read_from_its_tables(quality: int) -> None:
    data = pictures.jpeg_bytes(crops()[0], quality)
    found = compression.jpeg_quality(sniff(data).luminance_table)
    assert found == pytest.approx(quality, abs=1.0)  # tables are whole numbers
    progressive = pictures.jpeg_bytes(crops()[0], quality, progressive=True)
    assert compression.jpeg_quality(sniff(progressive).luminance_table) == found
    assert compression.bits_per_pixel(len(data), crops()[0]) == pytest.approx(8 * len(data) / 512**2, rel=1e-4)


def test_what_is_no_jpeg_has_no_quality() -> None:
    assert compression.jpeg_quality(sniff(encode_png(crops()[0][:8, :8])).luminance_table) is None


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (127, 129), (2, 2), (33, 33), (20, 700)])
@pytest.mark.parametrize("flat", [True, False])
def test_any_size_can_be_measured(size: tuple[int, int], flat: bool) -> None:
    any_HWC = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    found = of(np.full_like(any_HWC, 9) if flat else any_HWC)
    assert tuple(found) == MEASURES
    for name in ("flatness", "cutoff", "dark_share", "bright_share", "saturation", "seam", "repeats"):
        assert 0 <= found[name] <= 1
    assert found["jpeg_quality"] is np.nan
    assert all(value >= 0 or np.isnan(value) for name, value in found.items() if name != "overshoot")
