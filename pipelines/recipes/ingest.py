"""Recipes of the ingest job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.inputs_table import ShardLimits
from pipelines.runtime.cluster import WorkerOptions
from supir_model.images import MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """The whole configuration of an ingest run."""

    input: str  # a folder, an S3 prefix, or a tar
    output: str
    source_name: str = ""  # what the source is known by; empty: its address. Name it where the address may change
    sidecar: str = ""  # CSV in the source that tells provenance; empty: photos.csv, or <folder>.csv beside the folder
    shard: ShardLimits = field(default_factory=ShardLimits)
    max_bytes: int = 200 * 2**20  # choice: larger than any photograph of a camera, smaller than a shard
    max_pixels: int = MAX_PIXELS
    retry_failed: bool = False  # ask once more for what could not be fetched
    workers: WorkerOptions = field(default_factory=WorkerOptions)


def tiny() -> IngestConfig:
    """The photographs of examples/ in four shards, so that the demo shows what a shard is."""
    return IngestConfig(input="examples/photos", output="demo-output/corpus", shard=ShardLimits(rows=8))


def paper_20m() -> IngestConfig:
    """A corpus of the paper's size (Sec. 3.2: 20 million images, 10 TB): 40,000 shards on an autoscaled pool."""
    return IngestConfig(input="s3://sources/photographs", output="s3://corpus/v1", workers=WorkerOptions(workers=0))


RECIPES: dict[str, Callable[[], IngestConfig]] = {"tiny": tiny, "paper_20m": paper_20m}
