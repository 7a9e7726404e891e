"""images -> restorations: every picture through encoder, caption, sampling, decoder and colour fix."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from infra.ledger import Outcome
from pipelines.runtime.stage import Result, TravelsAsFields, result_config
from pipelines.stages.pictures import decoded_batches
from pipelines.stages.restorer import PictureRestorer, RestoredPicture, RestorerSettings

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("source_id", pa.string()),
        ("bytes", pa.binary()),
        ("stage1", pa.binary()),
        ("caption", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("settings", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Restoration(TravelsAsFields):
    """Restores the rows of `images`. A picture whose longer side exceeds `longest_px` is shrunk to it first (0: never)."""

    name: ClassVar[str] = "restore"
    version: ClassVar[int] = 2
    table: ClassVar[str] = "restorations"
    row_id: ClassVar[str] = "source_id"
    keeps_rejected: ClassVar[bool] = False

    restorer: RestorerSettings
    upscale: float = 1.0
    longest_px: int = 0
    decode_ahead: int = field(default=1, metadata={"result": False})

    @cached_property
    def engine(self) -> PictureRestorer:
        """The networks, made where they are used: they do not travel."""
        return self.restorer.build()

    def setup(self) -> None:
        """Load the networks."""
        assert self.engine is not None, "the networks are loaded by now"

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """Pictures differ in size, so they go one by one. `params["prompts"]`: what people said of some, by source_id."""
        images = rows["images"]
        settings = json.dumps(result_config(self), sort_keys=True)
        outcomes: list[Outcome] = []
        found: list[dict[str, Any]] = []
        for batch in decoded_batches(images, range(images.num_rows), self.decode_ahead, self.row_id, self._shrunk):
            outcomes += batch.failed
            for row, picture in zip(batch.rows, batch.pictures, strict=True):
                image_id, source_id = (images.column(name)[row].as_py() for name in ("image_id", "source_id"))
                prompt = params.get("prompts", {}).get(source_id)
                made = self.engine.restore([picture], [image_id], self.upscale, prompts=[prompt] if prompt else None)[0]
                found.append(to_row(image_id, source_id, made, settings))
        return Result(pa.Table.from_pylist(found, schema=SCHEMA), outcomes)

    def _shrunk(self, rgb_HWC: Any) -> Any:
        from supir_model.images import resize

        height, width = rgb_HWC.shape[:2]
        scale = self.longest_px / max(height, width) if self.longest_px else 1.0
        return rgb_HWC if scale >= 1 else resize(rgb_HWC, max(1, round(height * scale)), max(1, round(width * scale)))


def to_row(image_id: str, source_id: str, made: RestoredPicture, settings: str) -> dict[str, Any]:
    """A restored picture as a row: PNG, nothing is lost."""
    from supir_model.images import encode_png

    height, width = made.restored_HWC.shape[:2]
    return {
        "image_id": image_id,
        "source_id": source_id,
        "bytes": encode_png(made.restored_HWC),
        "stage1": encode_png(made.stage1_HWC),
        "caption": made.caption,
        "prompt": made.prompt,
        "seed": made.seed,
        "settings": settings,
        "width": width,
        "height": height,
    }
