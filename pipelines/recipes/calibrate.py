"""Recipes of the calibrate job: whose rule gets its bounds from a reference set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pipelines.recipes.curate import basic_rule, faces_rule, paper_rule, strict_rule
from pipelines.stages.image_models import ImageModels
from pipelines.stages.selection import SelectionRule
from supir_model.images import MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """`input`: a dataset with scores, or a folder or bucket of photographs that people chose (DIV2K, LSDIR); `output`: a JSON file, or
    empty. `models`: networks that measure the photographs of a folder, as curate has them. `worst`: percent of the reference set that
    may be rejected at each end, whatever the corpus is."""

    input: str
    rule: SelectionRule
    models: ImageModels = field(default_factory=ImageModels)
    output: str = ""
    worst: float = 0.5  # choice: 4 of DIV2K's 800 photographs
    threads: int = 2
    max_pixels: int = MAX_PIXELS


def paper_20m() -> CalibrateConfig:
    """The limits of curate's recipe of this name."""
    return CalibrateConfig(input="DIV2K_train_HR", rule=paper_rule())


def strict() -> CalibrateConfig:
    """The limits of curate's recipe of this name."""
    return replace(paper_20m(), rule=strict_rule())


def faces_70k() -> CalibrateConfig:
    """The limits of curate's recipe of this name; needs `models.faces`, or a dataset whose scores have faces."""
    return replace(paper_20m(), input="ffhq", rule=faces_rule())


def demo() -> CalibrateConfig:
    """The limits of curate's recipe of this name."""
    return replace(paper_20m(), rule=basic_rule(256))


RECIPES: dict[str, Callable[[], CalibrateConfig]] = {"paper_20m": paper_20m, "strict": strict, "faces_70k": faces_70k, "demo": demo}
