"""Captions beside their pictures, for the tracked run of a caption job."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from infra.dataset import Dataset, Snapshot
from infra.tracking import Tracker
from pipelines.stages.captions import seed_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICTURE_PX, TEXT_PX, LINE_PX = 256, 512, 16
LINE_CHARS = 72
SHARDS_READ = 8  # choice: samples of this many shards; each costs reading 256 MB


def log_samples(tracker: Tracker, dataset: Dataset, made: Snapshot, count: int) -> None:
    """Log `count` captions of a snapshot as pictures, chosen by a hash of their image's id."""
    for i, (picture_HWC, caption) in enumerate(samples(dataset, made, count)):
        tracker.image("captions", card(picture_HWC, caption), step=i)


def samples(dataset: Dataset, made: Snapshot, count: int) -> Iterator[tuple[NDArray[Any], str]]:
    """(picture, caption) of some rows, evenly over up to 8 shards."""
    from supir_model.images import decode

    images = dataset.snapshot("images")
    shards = sorted((shard for shard, ref in made.shards.items() if ref.rows), key=lambda shard: seed_of(shard, "sample"))[:SHARDS_READ]
    for place, shard in enumerate(shards):
        share = count * (place + 1) // len(shards) - count * place // len(shards)
        rows = dataset.read(made.shards[shard], ["image_id", "caption"]).to_pylist()
        chosen = {row["image_id"]: row["caption"] for row in sorted(rows, key=lambda row: seed_of(row["image_id"], "sample"))[:share]}
        table = dataset.read(images.shards[shard], ["image_id", "bytes"])
        for image_id, data in zip(table.column("image_id").to_pylist(), table.column("bytes"), strict=True):
            if image_id in chosen:
                yield decode(data.as_py()).rgb_HWC, chosen.pop(image_id)


def card(picture_HWC: NDArray[Any], caption: str) -> NDArray[Any]:
    """A picture with its caption to the right, as one picture (uint8 RGB)."""
    import numpy as np
    from PIL import Image, ImageDraw

    picture = Image.fromarray(picture_HWC)
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    lines = textwrap.wrap(caption, LINE_CHARS)
    sheet = Image.new("RGB", (PICTURE_PX + TEXT_PX, max(PICTURE_PX, (len(lines) + 1) * LINE_PX)), "white")
    sheet.paste(picture, (0, 0))
    ImageDraw.Draw(sheet).multiline_text((PICTURE_PX + 8, 4), "\n".join(lines), fill="black", spacing=4)
    return np.asarray(sheet)
