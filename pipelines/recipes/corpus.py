"""Recipes of the corpus job: where photographs come from, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.recipes import curate, ingest
from pipelines.recipes.curate import CurateConfig
from pipelines.recipes.ingest import IngestConfig


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """`sources` are addresses as ingest takes them, or `recipe=address` with a recipe of ingest (`urls=list.csv`, `pd12m=s3://…`).

    `ingest` holds what all sources share: shards, workers, limits, and what of web, columns and wanted is set by hand, which a recipe then
    takes too; its input and output, and the input of `curate`, are set by the job.
    """

    sources: tuple[str, ...]
    output: str
    ingest: IngestConfig = field(default_factory=lambda: IngestConfig(input="", output=""))
    curate: CurateConfig


def tiny() -> CorpusConfig:
    """The photographs of examples/."""
    return CorpusConfig(sources=("examples/photos",), output="demo-output/corpus", ingest=ingest.tiny(), curate=curate.tiny())


def paper_20m() -> CorpusConfig:
    """A corpus of the paper's size from photographs on S3."""
    return CorpusConfig(sources=("s3://sources/photographs",), output="s3://corpus/v1", ingest=ingest.paper_20m(),
                        curate=curate.paper_20m())


RECIPES: dict[str, Callable[[], CorpusConfig]] = {"tiny": tiny, "paper_20m": paper_20m}
