"""Recipes of the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What is read (a workspace and the names in it) and where the page goes. A name that is not there leaves its section empty."""

    input: str
    output: str  # an HTML file; a local path
    title: str
    corpus: str = "corpus"
    negatives: str = "negatives"
    encoder: str = "encoder"
    adaptor: str = "adaptor"
    restored: str = "restored"
    scored: str = "scored"
    commands: str = "demo.json"
    prior: str = "priors/tiny"
    most: int = 48  # choice: pictures per section; more is not looked at
    most_strips: int = 8  # choice: comparisons are large


def tiny() -> ReportConfig:
    """The page that `make demo` ends with."""
    return ReportConfig(input="demo-output", output="demo-output/index.html", title="From raw photographs to restored ones, in one command")


RECIPES: dict[str, Callable[[], ReportConfig]] = {"tiny": tiny}
