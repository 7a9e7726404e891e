"""The card of a dataset in Croissant's format (MLCommons, version 1.0): what other tools read to find and load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.dataset import Dataset, Snapshot
from infra.local_store import LocalStore
from pipelines.page.dataset.content import DatasetPage

TERMS = (
    "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format", "includes",
    "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated", "replace",
    "samplingRate", "separator", "source", "subField", "transform",
)  # fmt: skip
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in TERMS},
}
FOLDER_HASH = "https://github.com/mlcommons/croissant/issues/80"  # what readers of the format accept for a folder, which has no hash
FOLDER = "dataset-folder"


def croissant(dataset: Dataset, page: DatasetPage, place: Path | None = None) -> dict[str, Any]:
    """The card. Files are named by the shards of the current snapshots alone: readers must not take what no commit names.

    A card at a `place` above a local dataset names files from there, as readers (mlcroissant) look for them; else it tells the address,
    and whoever reads the records copies the dataset beside a card first.
    """
    inside = place is not None and isinstance(dataset.store, LocalStore) and Path(dataset.store.url).is_relative_to(place)
    before = f"{Path(dataset.store.url).relative_to(place).as_posix()}/".removeprefix("./") if place is not None and inside else None
    snapshots = [dataset.snapshot(table) for table in dataset.tables() if dataset.has(table)]
    folder = {
        "@type": "cr:FileObject",
        "@id": FOLDER,
        "name": FOLDER,
        "contentUrl": page.address,
        "encodingFormat": "application/x-directory",
        "sha256": FOLDER_HASH,
    }
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": page.title,
        "description": _describe(page),
        "license": [one.label for one in page.licences] or ["not stated"],
        "citeAs": f"{page.title}, made with Open SUPIR, {page.made_at[:10]}",
        "version": f"1.0.0+{next((version for table, version, _ in page.versions if table == 'selections'), page.versions[0][1])}",
        "datePublished": page.made_at[:10],
        "url": page.address,
        "distribution": [*([folder] if before is None else []), *(_files(snapshot, before) for snapshot in snapshots)],
        "recordSet": [_records(dataset, snapshot) for snapshot in snapshots if snapshot.shards],
    }


def _describe(page: DatasetPage) -> str:
    kept = dict(page.figures).get("kept")
    counted = f", of which {kept} are selected" if kept else ""
    return (
        f"Images for training a restoration model{counted}. Join tables on image_id and source_id; an image is part of the corpus where "
        "selections.accepted is true."
    )


def _files(snapshot: Snapshot, before: str | None) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet", "@id": f"{snapshot.table}-files", "name": f"{snapshot.table}-files",
        **({"containedIn": {"@id": FOLDER}} if before is None else {}), "encodingFormat": "application/x-parquet",
        "includes": [f"{before or ''}{ref.path}" for ref in snapshot.shards.values()],
    }  # fmt: skip


def _records(dataset: Dataset, snapshot: Snapshot) -> dict[str, Any]:
    ref = next(iter(snapshot.shards.values()))
    with dataset.store.open(ref.path) as file:
        schema = pq.ParquetFile(file).schema_arrow
    return {
        "@type": "cr:RecordSet",
        "@id": snapshot.table,
        "name": snapshot.table,
        "field": [_field(snapshot.table, one) for one in schema],
    }


def _field(table: str, column: pa.Field) -> dict[str, Any]:
    return {
        "@type": "cr:Field", "@id": f"{table}/{column.name}", "name": column.name, "dataType": _type(column),
        "source": {"fileSet": {"@id": f"{table}-files"}, "extract": {"column": column.name}},
    }  # fmt: skip


def _type(column: pa.Field) -> str:
    if column.name == "embedding":
        return "sc:Text"  # float16 numbers as bytes: the format has no type for them
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return "sc:ImageObject"
    kinds = ((pa.types.is_boolean, "sc:Boolean"), (pa.types.is_integer, "sc:Integer"), (pa.types.is_floating, "sc:Float"))
    return next((name for fits, name in kinds if fits(column.type)), "sc:Text")
