"""What is measured of a picture: pure functions of its pixels (`rgb_HWC`, uint8 sRGB, upright, native resolution) and its file.

docs/data.md says what each column means, its range and its source, and shows how photographs are distributed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MEASURES = (
    "sharpness", "flatness", "noise", "overshoot", "cutoff", "blockiness", "jpeg_quality", "bits_per_pixel", "dark_share", "bright_share",
    "entropy", "colourfulness", "saturation", "border_px", "seam", "repeats", "text_area",
)


def measure(rgb_HWC: NDArray[Any], grey_HW: NDArray[Any], small_HW: NDArray[Any], size_bytes: int,
            luminance_table: Sequence[int] | None) -> dict[str, float | None]:
    """Every one of MEASURES of a picture, its luma (tiles.luma), that halved to below tiles.SMALL_PX, the size of its file, and what a
    JPEG's header says (supir_model.images.ImageInfo); None where one does not apply."""
    from pipelines.stages.measures import composition, compression, edges, text

    found: dict[str, float | None] = {
        **_of_steps(grey_HW), **of_tiles(grey_HW), **_of_light(rgb_HWC, grey_HW), "overshoot": edges.overshoot(grey_HW),
        "jpeg_quality": compression.jpeg_quality(luminance_table), "bits_per_pixel": compression.bits_per_pixel(size_bytes, rgb_HWC),
        "border_px": composition.border_px(grey_HW), "text_area": text.text_area(small_HW),
    }
    return {name: found[name] for name in MEASURES}


def of_tiles(grey_HW: NDArray[Any]) -> dict[str, float]:
    """Sharpness, flatness, noise and cutoff of a picture's luma, from the same rows of its tiles."""
    from pipelines.stages.measures import detail, rows, spectrum

    some = rows.some_rows(grey_HW)
    laplacian, sigma = detail.laplacian_tiles(some), detail.noise(some)
    return {"sharpness": detail.sharpness(laplacian), "flatness": detail.flatness(some), "noise": sigma,
            "cutoff": spectrum.cutoff(grey_HW, laplacian, sigma)}


def _of_steps(grey_HW: NDArray[Any]) -> dict[str, float]:
    from pipelines.stages.measures import composition, compression, tiles

    steps = tiles.steps(grey_HW)
    return {"blockiness": compression.blockiness(steps), "seam": composition.seam(steps), "repeats": composition.repeats(steps)}


def _of_light(rgb_HWC: NDArray[Any], grey_HW: NDArray[Any]) -> dict[str, float]:
    from pipelines.stages.measures import exposure

    levels, colours = exposure.levels(grey_HW), exposure.some_colours(rgb_HWC)
    return {"dark_share": exposure.dark_share(levels), "bright_share": exposure.bright_share(levels), "entropy": exposure.entropy(levels),
            "colourfulness": exposure.colourfulness(colours), "saturation": exposure.saturation(colours)}
