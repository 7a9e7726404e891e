"""images -> scores: what can be measured of each picture alone.

Columns: `width`, `height`, `short_side` (pixels, upright), those of stages/measures (float32), those of stages/image_models (null where
no network is configured), those of stages/hashes.py, and `measured_by`, the version of the code that measured. docs/data.md explains
each. A picture that cannot be decoded is a failed row (`truncated`, `damaged`, `too_many_pixels`, …).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from infra.ledger import Outcome
from pipelines.runtime.stage import Result, TravelsAsFields
from pipelines.stages.image_models import ImageModels, Judge
from pipelines.stages.measures import MEASURES, measure

SCHEMA = pa.schema([
    ("image_id", pa.string()), ("source_id", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("short_side", pa.int32()),
    *((name, pa.float32()) for name in MEASURES),
    ("face_count", pa.int32()), ("face_px", pa.float32()), ("aesthetic", pa.float32()), ("nsfw", pa.float32()), ("watermark", pa.float32()),
    ("embedding", pa.binary()),
    ("phash", pa.string()), ("phash_quality", pa.float32()), ("phash_crops", pa.string()),
    ("phash_parts", pa.string()), ("measured_by", pa.string()),
])
Row = dict[str, Any]
Prepared = list[Any]  # one for each judge


@dataclass(frozen=True, kw_only=True)
class Scores(TravelsAsFields):
    """Decodes once and measures. `batch_rows` pictures are decoded and judged together; their bytes are held, not the whole shard's."""

    max_pixels: int
    models: ImageModels = field(default_factory=ImageModels)
    threads: int = field(default=1, metadata={"result": False})
    batch_rows: int = field(default=32, metadata={"result": False})
    name: str = "scores"
    version: int = 5
    table: str = "scores"
    row_id: str = "source_id"
    keeps_rejected: bool = False

    @cached_property
    def judges(self) -> list[Judge]:
        """The networks, made where they are used: they do not travel."""
        return self.models.build()

    def setup(self) -> None:
        """One picture, one thread: workers are the parallelism."""
        import cv2

        cv2.setNumThreads(1)
        assert isinstance(self.judges, list), "loaded before the first row"

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """Rows in, rows out, in their order; no params."""
        images = rows["images"].select(["image_id", "source_id", "bytes"])
        measured: list[Row | Outcome] = []
        with ThreadPoolExecutor(self.threads) as pool:
            each = pool.map if self.threads > 1 else map
            for low in range(0, images.num_rows, self.batch_rows):
                found = list(each(self._measure, _one_by_one(images.slice(low, self.batch_rows))))
                self._judge([pair for pair in found if not isinstance(pair, Outcome)])
                measured += [one if isinstance(one, Outcome) else one[0] for one in found]
        table = pa.Table.from_pylist([one for one in measured if not isinstance(one, Outcome)], schema=SCHEMA)
        return Result(table, [one for one in measured if isinstance(one, Outcome)])

    def _measure(self, row: Row) -> tuple[Row, Prepared] | Outcome:
        from pipelines.stages.hashes import measure_hashes
        from pipelines.stages.measures.tiles import SMALL_PX, halved, luma
        from supir_model.images import ImageError, decode

        try:
            decoded = decode(row["bytes"], max_pixels=self.max_pixels)
        except ImageError as error:
            return Outcome(row["source_id"], "failed", error.code, str(error))
        rgb_HWC = decoded.rgb_HWC
        height, width = rgb_HWC.shape[:2]
        grey_HW = luma(rgb_HWC)
        small_HW = halved(grey_HW, SMALL_PX)
        scores = {"image_id": row["image_id"], "source_id": row["source_id"], "width": width, "height": height,
                  "short_side": min(width, height), **measure(rgb_HWC, grey_HW, small_HW, len(row["bytes"]), decoded.info.luminance_table),
                  **measure_hashes(small_HW), "measured_by": f"{self.name} {self.version}"}
        return scores, [judge.prepare(rgb_HWC) for judge in self.judges]

    def _judge(self, pairs: list[tuple[Row, Prepared]]) -> None:
        for place, judge in enumerate(self.judges if pairs else []):
            for (scores, _), judged in zip(pairs, judge.judge([prepared[place] for _, prepared in pairs]), strict=True):
                scores.update(judged)


def _one_by_one(images: pa.Table) -> Iterator[Row]:
    for index in range(images.num_rows):
        yield {"image_id": images["image_id"][index].as_py(), "source_id": images["source_id"][index].as_py(),
               "bytes": images["bytes"][index].as_py()}
