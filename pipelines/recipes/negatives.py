"""Recipes of the negatives job."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.runtime.cluster import WorkerOptions
from pipelines.stages.negatives import NegativeSettings
from pipelines.stages.parents import ParentChoice


@dataclass(frozen=True, kw_only=True)
class NegativesConfig:
    """`input` is a dataset with images and selections, `output` the dataset of negatives that is made of it.

    `prior` is a folder of weights: SDXL in diffusers' layout, or one of ours. One sample at a time is exact on every machine;
    a larger `batch_size` is for a GPU, where it changes values by rounding only.
    """

    input: str
    output: str
    prior: str
    parents: ParentChoice
    negatives: NegativeSettings
    batch_size: int = 1
    device: str = "auto"
    clip_tokenizer: str | None = None
    review_pairs: int = 100  # choice: measured beside their parents when all are made; the standard error is a tenth of the spread
    sheet: str | None = None  # a PNG file for parents above negatives, beside the tracked run's
    calibrate: int = 0  # with --dry-run: rows that a worker tries; 0: no estimate
    workers: WorkerOptions = field(default_factory=WorkerOptions)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected 1 or more")
        if self.review_pairs < 0 or self.calibrate < 0:
            raise ValueError(f"review_pairs is {self.review_pairs} and calibrate {self.calibrate}, expected 0 or more")


def tiny() -> NegativesConfig:
    """A few samples by the prior that ships with the repository."""
    return NegativesConfig(input="demo-output/corpus", output="demo-output/negatives", prior="priors/tiny",
                           parents=ParentChoice(count=6), negatives=NegativeSettings(size_px=128, steps=24),
                           clip_tokenizer="priors/tiny/tokenizer")


def paper_100k() -> NegativesConfig:
    """100 K samples by SDXL at 1024 px (Sec. 4.1, App. A.4) on every GPU of the cluster."""
    return NegativesConfig(input="s3://corpus/v1", output="s3://corpus/negatives-v1", prior="weights/sdxl-base-1.0",
                           parents=ParentChoice(count=100_000), negatives=NegativeSettings(size_px=1024),
                           batch_size=4,  # choice: 7 GB of weights and four images of 1024 px fit 24 GB
                           clip_tokenizer="priors/tiny/tokenizer", workers=WorkerOptions(workers=0, cpus=4, gpus=1))


RECIPES = {"tiny": tiny, "paper_100k": paper_100k}
