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


@dataclass(frozen=True, kw_only=True)
class DatasetReportConfig:
    """The page of one dataset (`input`), and beside it a card in Croissant's format. Statistics come from at most so many shards.

    `compared_captions` of as many rows as the table has, or more, compares the captions of the whole corpus.
    """

    input: str
    output: str  # an HTML file; a local path
    title: str = ""  # empty: the last part of the address
    statistics_shards: int = 64  # choice: 30,000 rows of 20 million
    picture_shards: int = 8  # choice: 2 GB of pictures are opened
    most: int = 20  # choice: pictures of one fate
    compared_captions: int = 200_000  # choice: ten seconds, and reading them; a million takes one minute
    price_per_hour: float = 0.0  # of a worker, in any currency; 0: cost is not told


def tiny() -> ReportConfig:
    """The page that `make demo` ends with."""
    return ReportConfig(input="demo-output", output="demo-output/index.html", title="From raw photographs to restored ones, in one command")


def dataset() -> DatasetReportConfig:
    """The page of a dataset, of any size."""
    return DatasetReportConfig(input="demo-output/corpus", output="demo-output/corpus.html")


RECIPES: dict[str, Callable[[], ReportConfig | DatasetReportConfig]] = {"tiny": tiny, "dataset": dataset}
