"""Recipes of the export job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.runtime.cluster import WorkerOptions


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """`input` is a curated dataset; tars and the table that names them go to `output`.

    With `captioned` a picture without a caption stays out.
    """

    input: str
    output: str
    captioned: bool = True
    workers: WorkerOptions = field(default_factory=WorkerOptions)


def tiny() -> ExportConfig:
    """The demo's corpus."""
    return ExportConfig(input="demo-output/corpus", output="demo-output/export")


def paper_20m() -> ExportConfig:
    """The whole corpus, with captions, on an autoscaled pool."""
    return ExportConfig(input="s3://corpus/v1", output="s3://corpus/v1-webdataset", workers=WorkerOptions(workers=0, cpus=0.5))


RECIPES: dict[str, Callable[[], ExportConfig]] = {"tiny": tiny, "paper_20m": paper_20m}
