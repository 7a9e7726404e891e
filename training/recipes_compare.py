"""Configurations of compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from training.ranges import COUNT, check


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """`runs` are MLflow run ids; without them the newest runs of `experiments` that `filter` (MLflow's language) lets through."""

    output: str  # an HTML file; a local path
    experiments: tuple[str, ...] = ("train_encoder", "train_adaptor")
    filter: str = ""
    runs: tuple[str, ...] = ()
    most: int = 8  # choice: more lines in one plot are not told apart
    title: str = "Training runs beside each other"

    def __post_init__(self) -> None:
        check(self, most=COUNT)


def tiny() -> CompareConfig:
    """The runs of the demo."""
    return CompareConfig(output="demo-output/compare.html")


RECIPES: dict[str, Callable[[], CompareConfig]] = {"tiny": tiny}
