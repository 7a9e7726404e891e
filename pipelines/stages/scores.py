"""images -> scores: what can be measured of each picture alone. Definitions in pipelines/stages/measures.py.

Columns: `width`, `height`, `short_side` (pixels, upright), `sharpness`, `flatness`, `phash` (16 hex digits), and `measured_by`, the
version of the code that measured. A picture that cannot be decoded is a failed row (`truncated`, `damaged`, `too_many_pixels`, …).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from infra.ledger import Outcome
from pipelines.runtime.stage import Result

SCHEMA = pa.schema([
    ("image_id", pa.string()), ("source_id", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("short_side", pa.int32()),
    ("sharpness", pa.float64()), ("flatness", pa.float64()), ("phash", pa.string()), ("measured_by", pa.string()),
])
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Decodes and measures."""

    max_pixels: int
    threads: int = field(default=1, metadata={"result": False})
    name: str = "scores"
    version: int = 1
    table: str = "scores"
    row_id: str = "source_id"
    keeps_rejected: bool = False

    def setup(self) -> None:
        """One picture, one thread: workers are the parallelism."""
        import cv2

        cv2.setNumThreads(1)

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """Rows in, rows out, in their order; no params."""
        images = rows["images"].select(["image_id", "source_id", "bytes"])
        with ThreadPoolExecutor(self.threads) as pool:
            measured = list(pool.map(self._measure, _one_by_one(images)))
        table = pa.Table.from_pylist([one for one in measured if not isinstance(one, Outcome)], schema=SCHEMA)
        return Result(table, [one for one in measured if isinstance(one, Outcome)])

    def _measure(self, row: Row) -> Row | Outcome:
        from pipelines.stages import measures
        from supir_model.images import ImageError, decode

        try:
            rgb_HWC = decode(row["bytes"], max_pixels=self.max_pixels).rgb_HWC
        except ImageError as error:
            return Outcome(row["source_id"], "failed", error.code, str(error))
        height, width = rgb_HWC.shape[:2]
        grey_HW = measures.luma(rgb_HWC)
        return {"image_id": row["image_id"], "source_id": row["source_id"], "width": width, "height": height,
                "short_side": min(width, height), "sharpness": measures.sharpness(grey_HW), "flatness": measures.flatness(grey_HW),
                "phash": f"{measures.perceptual_hash(grey_HW):016x}", "measured_by": f"{self.name} {self.version}"}


def _one_by_one(images: pa.Table) -> Iterator[Row]:
    for index in range(images.num_rows):
        yield {"image_id": images["image_id"][index].as_py(), "source_id": images["source_id"][index].as_py(),
               "bytes": images["bytes"][index].as_py()}
