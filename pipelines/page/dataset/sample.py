"""The part of a dataset that the page looks at: some shards, evenly spaced, so that 20 million rows take no longer than a few thousand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.dataset import Dataset, ShardRef
from pipelines.page.content import Picture
from pipelines.page.pictures import decoded_or_none, embed_detail, embed_rgb
from pipelines.page.reading import Row
from pipelines.stages.selection import DUPLICATE_EXACT, DUPLICATE_NEAR, DUPLICATE_SEMANTIC

DUPLICATES = (DUPLICATE_EXACT, DUPLICATE_NEAR, DUPLICATE_SEMANTIC)
NOT_MEASURES = ("width", "height")  # short_side says it
ID_HEX = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")


class Sample:
    """Rows of evenly spaced shards. `statistics` bounds the shards that numbers come from, `pictures` those whose images are opened,
    and as many again for copies beside what won over them."""

    def __init__(self, dataset: Dataset, *, statistics: int, pictures: int) -> None:
        self.dataset = dataset
        primary = next((table for table in ("selections", "scores", "images") if dataset.has(table)), None)
        names = list(dataset.snapshot(primary).shards) if primary else []
        self.total = len(names)
        self.shards = evenly(names, statistics)
        self.picture_shards = evenly(self.shards, pictures)
        self.picture_shards += [one for one in self._shards_of_copies(pictures) if one not in self.picture_shards]

    def _shards_of_copies(self, most: int) -> list[str]:
        """Shards that hold duplicates together with those that won over them: else chance would rarely show both."""
        kept: dict[str, str] = {}
        lost: list[tuple[str, str]] = []
        for shard in self.shards:
            for row in self.rows("selections", shards=[shard]):
                if row["accepted"]:
                    kept |= {row["image_id"]: shard, row["source_id"]: shard}
                elif row["reason"] in DUPLICATES:
                    lost.append((shard, row["value"]))
        pairs = ((shard, kept[winner]) for shard, winner in lost if winner in kept)
        return list(dict.fromkeys(shard for pair in pairs for shard in pair))[:most]

    def refs(self, table: str, shards: Iterable[str] | None = None) -> list[ShardRef]:
        """The sampled shards of a table, those that it has."""
        if not self.dataset.has(table):
            return []
        there = self.dataset.snapshot(table).shards
        return [there[name] for name in (self.shards if shards is None else shards) if name in there]

    def rows(self, table: str, columns: list[str] | None = None, shards: Iterable[str] | None = None) -> Iterator[Row]:
        """Rows of the sampled shards."""
        for ref in self.refs(table, shards):
            known = None if columns is None else [name for name in columns if name in self._columns(ref)]
            yield from self.dataset.read(ref, known).to_pylist()

    def _columns(self, ref: ShardRef) -> list[str]:
        import pyarrow.parquet as pq

        with self.dataset.store.open(ref.path) as file:
            return list(pq.ParquetFile(file).schema_arrow.names)

    @cached_property
    def scores(self) -> pa.Table | None:
        """The scores of the sample."""
        tables = [self.dataset.read(ref) for ref in self.refs("scores")]
        return pa.concat_tables(tables, promote_options="default") if tables else None

    @cached_property
    def measures(self) -> dict[str, NDArray[Any]]:
        """Name -> values (NaN where there is none), a row a picture, of every measure that varies or has a value at all."""
        if self.scores is None:
            return {}
        found = {}
        for field in self.scores.schema:
            if field.name in NOT_MEASURES or not (pa.types.is_floating(field.type) or pa.types.is_integer(field.type)):
                continue
            values = np.asarray(self.scores[field.name].cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
            if np.isfinite(values).any():
                found[field.name] = values
        return found

    @cached_property
    def fates(self) -> dict[str, Row]:
        """source_id -> row of selections."""
        return {row["source_id"]: row for row in self.rows("selections")}

    @cached_property
    def source_ids(self) -> list[str]:
        """Of the rows of `measures`."""
        ids: list[str] = self.scores["source_id"].to_pylist() if self.scores is not None else []
        return ids

    @cached_property
    def reasons(self) -> NDArray[Any]:
        """Why a row of `measures` was rejected; "" where it was kept, or nothing was selected yet."""
        return np.array([self.fates.get(one, {"reason": ""})["reason"] for one in self.source_ids], dtype=object)

    @cached_property
    def images(self) -> dict[str, Row]:
        """source_id -> row of images without its bytes, of the picture shards."""
        return {row["source_id"]: row for row in self.rows("images", ["source_id", "image_id", "width", "height"], self.picture_shards)}

    @cached_property
    def names(self) -> dict[str, str]:
        """source_id -> the name under which a picture was listed, of the sample."""
        return {row["source_id"]: row["position"] for row in self.rows("inputs", ["source_id", "position"])}

    def name(self, source_id: str) -> str:
        """The last part of a picture's name."""
        return self.names.get(source_id, source_id[:12]).rsplit("/", 1)[-1].rsplit("!", 1)[-1]

    def said(self, value: str) -> str:
        """A reason's value with the ids in it as names."""
        by_image = {row["image_id"]: source_id for source_id, row in self.images.items()}
        return ID_HEX.sub(lambda found: self.name(by_image.get(found[0], found[0])), value)

    def pictures(self, source_ids: Iterable[str], detailed: Iterable[str] = ()) -> tuple[dict[str, Picture], dict[str, Picture]]:
        """Thumbnails of those that lie in the picture shards and can be decoded, and of some a detail; each shard is opened once."""
        wanted, detailed = set(source_ids) & set(self.images), set(detailed)
        found: dict[str, Picture] = {}
        details: dict[str, Picture] = {}
        for ref in self.refs("images", self.picture_shards) if wanted else []:
            table = self.dataset.read(ref, ["source_id", "bytes"])
            for index, source_id in enumerate(table["source_id"].to_pylist()):
                if source_id in wanted and (rgb_HWC := decoded_or_none(table["bytes"][index].as_py())) is not None:
                    found[source_id] = embed_rgb(rgb_HWC, self.name(source_id))
                    if source_id in detailed:
                        details[source_id] = embed_detail(rgb_HWC, self.name(source_id))
        return found, details


def evenly(names: list[str], most: int) -> list[str]:
    """At most so many of the names, the first and others evenly spaced."""
    if len(names) <= most:
        return names
    return [names[i * len(names) // most] for i in range(most)]
