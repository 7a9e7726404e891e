"""Recipes of the ingest job. Those of public sources are written from their documentation and have not been tried against the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.inputs_table import ShardLimits, Wanted
from pipelines.runtime.cluster import WorkerOptions
from pipelines.table_columns import Columns
from pipelines.web.options import WebOptions
from supir_model.images import MAX_PIXELS

PUBLIC_DOMAIN = ("https://creativecommons.org/publicdomain/mark/1.0/", "https://creativecommons.org/publicdomain/zero/1.0/")
TRAINED_SIDE_PX = 1024  # Sec. 3.2: images of 1024 x 1024


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """The whole configuration of an ingest run."""

    input: str  # a folder, an S3 prefix, a tar, or a table
    output: str
    source_name: str = ""  # what the source is known by; empty: its address. Name it where the address may change
    sidecar: str = ""  # CSV in the source that tells provenance; empty: photos.csv, or <folder>.csv beside the folder
    lists: bool = False  # take CSV, TSV and text files of a folder for URL tables too (Parquet files always are looked into)
    columns: Columns = field(default_factory=Columns)
    wanted: Wanted = field(default_factory=Wanted)
    shard: ShardLimits = field(default_factory=ShardLimits)
    expected_bytes: int = 512 * 2**10  # of a photograph on the web; measured: 0.7 MB the mean of the photographs in the benchmark
    expected_rows: int = 0  # what the source should hold; another count is told. 0: unknown
    max_bytes: int = 200 * 2**20  # choice: larger than any photograph of a camera, smaller than a shard
    max_pixels: int = MAX_PIXELS
    web: WebOptions = field(default_factory=WebOptions)
    retry_failed: bool = False  # ask once more for what could not be fetched
    workers: WorkerOptions = field(default_factory=WorkerOptions)

    def __post_init__(self) -> None:
        if self.expected_bytes < 1:
            raise ValueError(f"expected_bytes={self.expected_bytes}: a photograph has at least one byte")


def tiny() -> IngestConfig:
    """The photographs of examples/ in four shards, so that the demo shows what a shard is."""
    return IngestConfig(input="examples/photos", output="demo-output/corpus", shard=ShardLimits(rows=8))


def paper_20m() -> IngestConfig:
    """A corpus of the paper's size (Sec. 3.2: 20 million images, 10 TB): 40,000 shards on an autoscaled pool."""
    return IngestConfig(input="s3://sources/photographs", output="s3://corpus/v1", workers=WorkerOptions(workers=0))


def urls() -> IngestConfig:
    """Any table of URLs, politely: give --input and web.contact."""
    return IngestConfig(input="urls.parquet", output="s3://corpus/v1")


def pd12m() -> IngestConfig:
    """PD12M: 12.4 million CC0 or public domain images with captions, hosted for this purpose on one bucket, which takes many requests.

    Its table (id, url, caption, width, height, mime_type, hash, license, source) as its card of late 2024 describes it; files that are
    older say md5_hash and license_type.
    """
    return IngestConfig(input="s3://sources/PD12M/metadata", output="s3://corpus/pd12m", source_name="pd12m", expected_rows=12_400_000,
                        columns=Columns(url="url", caption="caption", licence_url="license", width="width", height="height"),
                        wanted=Wanted(licences=PUBLIC_DOMAIN, min_short_side_px=TRAINED_SIDE_PX), expected_bytes=2 * 2**20,
                        web=WebOptions(host_in_flight=64, host_per_s=0.0))


def pd_extended() -> IngestConfig:
    """pd-extended: 34.8 million crops of PD12M inside Parquet (id, source_id, caption, image, mime_type, aesthetic_score, width, height).

    Its card says that they were cut out of PD12M, so beside that every one of them is a copy of a part; licences are PD12M's, without a
    column.
    """
    return IngestConfig(input="s3://sources/pd-extended", output="s3://corpus/pd-extended", source_name="pd-extended",
                        columns=Columns(image="image", caption="caption", width="width", height="height"),
                        wanted=Wanted(min_short_side_px=TRAINED_SIDE_PX), expected_rows=34_759_405)


def common_catalog_by() -> IngestConfig:
    """CommonCatalog CC-BY: 14.6 million Flickr photographs inside Parquet files; everything under CC BY 2.0, the authors named."""
    return IngestConfig(input="s3://sources/commoncatalog-cc-by", output="s3://corpus/commoncatalog", source_name="commoncatalog-cc-by",
                        columns=Columns(image="jpg", caption="blip2_caption", licence="licensename", licence_url="licenseurl",
                                        attribution="unickname", source_url="pageurl", width="width", height="height"),
                        wanted=Wanted(licences=("https://creativecommons.org/licenses/by/2.0/",), min_short_side_px=TRAINED_SIDE_PX),
                        expected_rows=14_600_000)


def unsplash_lite() -> IngestConfig:
    """Unsplash Lite: 25,000 photographs, also for commercial use; the table has no licence column, its terms hold for all rows."""
    return IngestConfig(input="s3://sources/unsplash-lite/photos.tsv000", output="s3://corpus/unsplash-lite", source_name="unsplash-lite",
                        columns=Columns(url="photo_image_url", caption="photo_description", attribution="photographer_username",
                                        source_url="photo_url", width="photo_width", height="photo_height"),
                        wanted=Wanted(min_short_side_px=TRAINED_SIDE_PX), expected_rows=25_000, expected_bytes=4 * 2**20)


def laion_hd() -> IngestConfig:
    """LAION-HD, 21.8 million after deduplication: addresses all over the web. It tells no licences: what may be used is for you to judge.

    URL is what a public script reads from it; the other names are those of LAION's own lists.
    """
    return IngestConfig(input="s3://sources/laion_hd_21M_deduped", output="s3://corpus/laion-hd", source_name="laion-hd",
                        columns=Columns(url="URL", caption="TEXT", width="WIDTH", height="HEIGHT"),
                        wanted=Wanted(min_short_side_px=TRAINED_SIDE_PX), expected_rows=21_800_000,
                        web=WebOptions(in_flight=256, host_in_flight=2, host_per_s=2.0),
                        workers=WorkerOptions(workers=16))  # choice: a host is asked twice a second by all of them together


def ffhq() -> IngestConfig:
    """FFHQ's unaligned photographs (Sec. 4.1: 70 K faces), downloaded by its own script; licence and author of each from its record."""
    # addresses as its README has them, names as its record has the first of them
    allowed = (*PUBLIC_DOMAIN, "https://creativecommons.org/licenses/by/2.0/", "http://www.usa.gov/copyright.shtml",
               "Attribution License", "Public Domain Mark", "Public Domain Dedication (CC0)", "United States Government Work")
    return IngestConfig(input="s3://sources/ffhq/in-the-wild-images", output="s3://corpus/faces", source_name="ffhq",
                        sidecar="ffhq-dataset-v2.json", wanted=Wanted(licences=allowed), expected_rows=70_000)


RECIPES: dict[str, Callable[[], IngestConfig]] = {
    "tiny": tiny, "paper_20m": paper_20m, "urls": urls, "pd12m": pd12m, "pd_extended": pd_extended, "common_catalog_by": common_catalog_by,
    "unsplash_lite": unsplash_lite, "laion_hd": laion_hd, "ffhq": ffhq,
}
