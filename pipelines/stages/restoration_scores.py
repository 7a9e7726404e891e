"""images -> evaluations: photographs that no training saw are degraded and restored, and measured against themselves.

Protocol: centre square at `size_px`; degraded at the same size; degraded input, decoded z_lq (stage 1) and result are 8-bit RGB
pictures, each compared with the original by PSNR and SSIM of torchmetrics over all three channels, without a border.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version as version_of_package
from typing import Any, ClassVar

import pyarrow as pa

from infra.holdout import is_held_out
from infra.ledger import Outcome
from pipelines.runtime.stage import Result, TravelsAsFields
from pipelines.stages.captions import seed_of, select
from pipelines.stages.pictures import Batch, decoded_batches
from pipelines.stages.restorer import PictureRestorer, RestorerSettings

MEASURED = ("lq", "stage1", "restored")
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("degradation", pa.string()),
        ("seed", pa.int64()),
        *((f"{measure}_{what}", pa.float64()) for what in MEASURED for measure in ("psnr", "ssim")),
        *((what, pa.binary()) for what in (*MEASURED, "original")),
        ("protocol", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class RestorationScores(TravelsAsFields):
    """Scores the accepted rows of `images` that are held out (one in `holdout_every`; 0: all rows, for a corpus of its own).

    Without a `selections` table among its inputs every row counts as accepted.
    """

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1
    table: ClassVar[str] = "evaluations"
    row_id: ClassVar[str] = "source_id"
    keeps_rejected: ClassVar[bool] = False

    restorer: RestorerSettings
    degradation: str
    size_px: int
    holdout_every: int
    batch_size: int = field(default=1, metadata={"result": False})

    @cached_property
    def engine(self) -> PictureRestorer:
        """The networks, made where they are used: they do not travel."""
        return self.restorer.build()

    def setup(self) -> None:
        """Nothing yet: a shard without a held-out picture needs no network."""

    @property
    def protocol(self) -> str:
        """How the numbers were made, as JSON; part of the result."""
        from supir_model.degradation.presets import get_preset

        return json.dumps(
            {
                "metrics": f"PSNR, SSIM (torchmetrics {version_of_package('torchmetrics')})",
                "colour": "RGB, 8 bits",
                "border": "none",
                "picture": f"centre square, {self.size_px} px",
                "degradation": self.degradation,
                "sampling": self.restorer.sampling.name,
                "seed": self.restorer.seed,
                "ssim": {"window": "gaussian, sigma 1.5", "data_range": 1.0},
                "degradation_numbers": asdict(get_preset(self.degradation)),
                "weights": self.restorer.weights.hashes,
            },
            sort_keys=True,
        )

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """Each picture's row depends on the picture and the settings alone."""
        images = rows["images"]
        chosen, outcomes = select(images, rows.get("selections"), self.row_id)
        ids = images.column("image_id").to_pylist()
        held_out = [row for row in chosen if self.holdout_every == 0 or is_held_out(ids[row], self.holdout_every)]
        outcomes += [
            Outcome(images.column(self.row_id)[row].as_py(), "rejected", "not_held_out") for row in sorted(set(chosen) - set(held_out))
        ]
        found: list[dict[str, Any]] = []
        for batch in decoded_batches(images, held_out, self.batch_size, self.row_id, self._square):
            outcomes += batch.failed
            found += self._score(batch, [ids[row] for row in batch.rows])
        return Result(pa.Table.from_pylist(found, schema=SCHEMA), outcomes)

    def _square(self, rgb_HWC: Any) -> Any:
        from supir_model.images import crop, resize_short_side

        return crop(resize_short_side(rgb_HWC, self.size_px), self.size_px)

    def _score(self, batch: Batch, image_ids: list[str]) -> list[dict[str, Any]]:
        from supir_model import degradation

        if not image_ids:
            return []
        positions = [seed_of(image_id, "degrade") for image_id in image_ids]
        params = [degradation.draw(self.degradation, self.restorer.seed, position, self.size_px) for position in positions]
        degraded = [degradation.apply_rgb(picture, p) for picture, p in zip(batch.pictures, params, strict=True)]
        made = self.engine.restore(degraded, image_ids)
        return [
            self._row(image_id, {"lq": lq, "stage1": one.stage1_HWC, "restored": one.restored_HWC, "original": original}, one.seed)
            for image_id, original, lq, one in zip(image_ids, batch.pictures, degraded, made, strict=True)
        ]

    def _row(self, image_id: str, pictures: dict[str, Any], seed: int) -> dict[str, Any]:
        from supir_model.images import encode_png

        measured = {f"{name}_{what}": value for what in MEASURED for name, value in measure(pictures[what], pictures["original"]).items()}
        encoded = {what: encode_png(picture) for what, picture in pictures.items()}
        return {"image_id": image_id, "degradation": self.degradation, "seed": seed, "protocol": self.protocol} | measured | encoded


def measure(rgb_HWC: Any, original_HWC: Any) -> dict[str, float]:
    """PSNR in dB and SSIM of one 8-bit RGB picture against another of the same size."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    from supir_model.images import rgb_to_unit

    x_1CHW, original_1CHW = rgb_to_unit(rgb_HWC), rgb_to_unit(original_HWC)
    psnr = peak_signal_noise_ratio(x_1CHW, original_1CHW, data_range=1.0)
    ssim = structural_similarity_index_measure(x_1CHW, original_1CHW, data_range=1.0)
    assert not isinstance(ssim, tuple), "without full_image one value is returned"
    return {"psnr": float(psnr), "ssim": float(ssim)}
