"""Recipes of the curate job. The paper states no threshold of its curation: all of them are choices, and docs/data.md shows photographs
on both sides of each. `pipelines/calibrate.py` derives the bounds from a reference set of your own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pipelines.runtime.cluster import WorkerOptions
from pipelines.stages.image_models import ImageModels
from pipelines.stages.selection import SelectionRule, Threshold, fixed
from supir_model.images import MAX_PIXELS

NEAR_RADIUS_BITS = 31  # PDQ; measured: different photographs lie 90 bits apart or more (docs/results/duplicates.md)
EXCLUDE_RADIUS_BITS = 40  # choice: wider, since a picture too many costs less than a test set seen


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """`input` is a dataset with images; scores and selections are written beside them. `models`: optional networks that measure.
    `exclude`: test sets (folders, prefixes, tars, datasets) whose pictures, whole, cropped or turned, must not be
    selected; a match differs in `exclude_radius` of 256 bits at most."""

    input: str
    rule: SelectionRule
    models: ImageModels = field(default_factory=ImageModels)
    exclude: tuple[str, ...] = ()
    exclude_radius: int = EXCLUDE_RADIUS_BITS
    max_pixels: int = MAX_PIXELS
    workers: WorkerOptions = field(default_factory=WorkerOptions)


# Bounds marked `measured` were set by looking at 187 photographs sorted by the measure, and at photographs degraded on purpose.

def basic_rule(min_short_side: int) -> SelectionRule:
    """Leaves out what is flat or blurred, and copies."""
    return SelectionRule(min_short_side=min_short_side,
                         sharpness=Threshold(percentile=5, at_least=4, at_most=15),  # measured: below 4 all are blurred, above 15 none
                         flatness=Threshold(percentile=95, at_least=0.5, at_most=0.7),  # measured: above 0.7 nothing but sky, wall or dark
                         near_radius=NEAR_RADIUS_BITS)


def paper_rule() -> SelectionRule:
    """High-resolution, high-quality, texture-rich photographs (Sec. 3.2); 1024 (choice) is what the network restores in one tile."""
    return replace(
        basic_rule(1024),
        border_px=fixed(8),  # choice: a bar as wide as a block
        seam=fixed(0.75),  # measured: one photograph of 187 (a shop front) reaches 0.69, of 4 x 1 collages 0.71 is the median
        repeats=fixed(0.9),  # measured: compressed photographs reach 0.87
        text_area=fixed(0.1),  # measured: photographs reach 0.033, pages begin at 0.2 (of letters that are seen)
        entropy=fixed(4),  # measured: photographs begin at 5.0 (stars on black), pages of text lie at 3.4
        dark_share=fixed(0.6), bright_share=fixed(0.4),  # measured: a concert at night 0.49, an object on white 0.27
        cutoff=Threshold(percentile=2, at_least=0.6, at_most=0.7),  # measured: enlarged by 2: 0.5 to 0.6; native: 0.8 and more
        jpeg_quality=Threshold(percentile=5, at_least=60, at_most=75),  # choice
        blockiness=Threshold(percentile=98, at_least=0.25, at_most=0.4),  # measured: JPEG 50: 0.28, JPEG 30: 0.43
        noise=Threshold(percentile=99, at_least=7, at_most=12),  # measured: a wooded slope reads as 6.4, grass all over as 9
        overshoot=Threshold(percentile=99, at_least=0.4, at_most=0.5))


def strict_rule() -> SelectionRule:
    """What nobody would object to, at the price of losing most: for the last phase of a training, or a test set."""
    return replace(
        paper_rule(), border_px=fixed(0), seam=fixed(0.5), repeats=fixed(0.8), entropy=fixed(5.5), dark_share=fixed(0.2),
        text_area=fixed(0.02),  # measured: one photograph of 100, and all banners and captions of two lines
        bright_share=fixed(0.1), colourfulness=fixed(5), flatness=Threshold(percentile=90, at_least=0.2, at_most=0.4),
        sharpness=Threshold(percentile=15, at_least=60, at_most=200), cutoff=Threshold(percentile=10, at_least=0.8, at_most=0.85),
        jpeg_quality=Threshold(percentile=10, at_least=85, at_most=92), bits_per_pixel=fixed(0.5),
        blockiness=Threshold(percentile=90, at_least=0.05, at_most=0.1), noise=Threshold(percentile=95, at_least=3, at_most=6),
        overshoot=Threshold(percentile=95, at_least=0.3, at_most=0.4))


def faces_rule() -> SelectionRule:
    """Photographs of people, unaligned (Sec. 4.1: 70 K of FFHQ-raw): as the paper's, with a face that is large enough to teach skin."""
    return replace(paper_rule(), face_count=fixed(1), face_px=fixed(256))  # choice: FFHQ's own faces fill about half of 1024 px


def tiny() -> CurateConfig:
    """The photographs of examples/: short side of 256 pixels, what the tiny network trains on."""
    return CurateConfig(input="demo-output/corpus", rule=basic_rule(256))


def paper_20m() -> CurateConfig:
    """20 million photographs on an autoscaled pool."""
    return CurateConfig(input="s3://corpus/v1", rule=paper_rule(), workers=WorkerOptions(workers=0))


def strict() -> CurateConfig:
    """The best of them."""
    return replace(paper_20m(), rule=strict_rule())


def faces_70k() -> CurateConfig:
    """Faces; needs `models.faces`, an ONNX file of OpenCV's FaceDetectorYN."""
    return replace(paper_20m(), input="s3://faces/v1", rule=faces_rule())


RECIPES: dict[str, Callable[[], CurateConfig]] = {"tiny": tiny, "demo": tiny, "paper_20m": paper_20m, "strict": strict,
                                                  "faces_70k": faces_70k}
