"""Captions beside their pictures, for the tracked run of a caption job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from infra.dataset import Dataset, Snapshot
from infra.tracking import Tracker
from pipelines.stages.captions import seed_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICTURE_PX, TEXT_PX, MARGIN_PX = 384, 560, 16
FONT_PX, LINE_PX, MOST_LINES = 17, 24, 24  # longer captions end in an ellipsis
SAID, ABOUT = (20, 20, 20), (120, 120, 120)  # colours of a caption, and of what is said about it
SHOWN = ["image_id", "caption", "model", "verdict", "clip_tokens"]
SHARDS_READ = 8  # choice: samples of this many shards; each costs reading 256 MB


def log_samples(tracker: Tracker, dataset: Dataset, made: Snapshot, count: int) -> None:
    """Log `count` captions of a snapshot as pictures, chosen by a hash of their image's id."""
    for i, (picture_HWC, row) in enumerate(samples(dataset, made, count)):
        tracker.image("captions", card(picture_HWC, row["caption"], about(row)), step=i)


def samples(dataset: Dataset, made: Snapshot, count: int) -> Iterator[tuple[NDArray[Any], dict[str, Any]]]:
    """(picture, row of captions) of some rows, evenly over up to 8 shards."""
    from supir_model.images import decode

    images = dataset.snapshot("images")
    shards = sorted((shard for shard, ref in made.shards.items() if ref.rows), key=lambda shard: seed_of(shard, "sample"))[:SHARDS_READ]
    for place, shard in enumerate(shards):
        share = count * (place + 1) // len(shards) - count * place // len(shards)
        rows = dataset.read(made.shards[shard], SHOWN).to_pylist()
        chosen = {row["image_id"]: row for row in sorted(rows, key=lambda row: seed_of(row["image_id"], "sample"))[:share]}
        table = dataset.read(images.shards[shard], ["image_id", "bytes"])
        for image_id, data in zip(table.column("image_id").to_pylist(), table.column("bytes"), strict=True):
            if image_id in chosen:
                yield decode(data.as_py()).rgb_HWC, chosen.pop(image_id)


def about(row: dict[str, Any]) -> str:
    """What a card says below its caption."""
    tokens = "" if row["clip_tokens"] is None else f", {row['clip_tokens']} CLIP tokens"
    return f"{row['model']}, {row['verdict']}{tokens}, {row['image_id'][:12]}"


def card(picture_HWC: NDArray[Any], caption: str, below: str) -> NDArray[Any]:
    """A picture with its caption to the right, as one picture (uint8 RGB); `below` is a line in grey under the caption."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT_PX)
    lines = wrapped(caption, lambda text: font.getlength(text) <= TEXT_PX)
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], "…"]
    picture = Image.fromarray(picture_HWC)
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    height = max(picture.height, (len(lines) + 2) * LINE_PX)
    sheet = Image.new("RGB", (PICTURE_PX + TEXT_PX + 3 * MARGIN_PX, height + 2 * MARGIN_PX), "white")
    sheet.paste(picture, (MARGIN_PX + PICTURE_PX - picture.width, MARGIN_PX))
    draw, left = ImageDraw.Draw(sheet), PICTURE_PX + 2 * MARGIN_PX
    for place, line in enumerate(lines):
        draw.text((left, MARGIN_PX + place * LINE_PX), line, fill=SAID, font=font)
    draw.text((left, MARGIN_PX + (len(lines) + 0.5) * LINE_PX), below, fill=ABOUT, font=ImageFont.load_default(FONT_PX * 0.75))
    return np.asarray(sheet)


def wrapped(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Words of a text in lines that fit; a word that does not fit alone stands alone."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and fits(longer):
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
