"""Recipes of the curate job. The paper states no threshold of its curation: all of them are choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.runtime.cluster import WorkerOptions
from pipelines.stages.selection import SelectionRule, Threshold
from supir_model.images import MAX_PIXELS

NEAR_RADIUS_BITS = 4  # choice: of the pairs of different photographs in examples/ the nearest differ in 10 bits


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """`input` is a dataset with images; scores and selections are written beside them."""

    input: str
    rule: SelectionRule
    max_pixels: int = MAX_PIXELS
    workers: WorkerOptions = field(default_factory=WorkerOptions)


def rule(min_short_side: int) -> SelectionRule:
    """Percentiles within bounds that were set by looking at 187 photographs sorted by each measure."""
    return SelectionRule(min_short_side=min_short_side,
                         sharpness=Threshold(percentile=5, at_least=4, at_most=15),  # measured: below 4 all are blurred, above 15 none
                         flatness=Threshold(percentile=95, at_least=0.5, at_most=0.7),  # measured: above 0.7 nothing but sky, wall or dark
                         near_radius=NEAR_RADIUS_BITS)


def tiny() -> CurateConfig:
    """The photographs of examples/: short side of 256 pixels, what the tiny network trains on."""
    return CurateConfig(input="demo-output/corpus", rule=rule(256))


def paper_20m() -> CurateConfig:
    """High-resolution photographs (Sec. 3.2) on an autoscaled pool; 1024 (choice) is what the network restores in one tile."""
    return CurateConfig(input="s3://corpus/v1", rule=rule(1024), workers=WorkerOptions(workers=0))


RECIPES: dict[str, Callable[[], CurateConfig]] = {"tiny": tiny, "paper_20m": paper_20m}
