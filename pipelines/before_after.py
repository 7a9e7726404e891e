"""The sheet `<output>/before_after.png`: what came in, enlarged, beside what was made of it, and the richest detail of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.dataset import Dataset, Snapshot
from pipelines.restored_files import file_names, positions_of, put_if_changed

if TYPE_CHECKING:
    from PIL import Image

NAME = "before_after.png"
MOST = 24  # choice: pictures on a sheet; more make it a file that nobody opens
CELL, GAP, MARGIN, LABEL, HEADER = 360, 10, 32, 54, 76  # pixels
PAPER, INK, QUIET, MARK = (250, 249, 247), (28, 28, 30), (118, 116, 112), (214, 92, 38)
COLUMNS = ("input, enlarged", "restored", "detail of the input", "the same detail restored")


@dataclass(frozen=True)
class Pair:
    """A picture before and after, both at the restored size; `note` is what it was described by."""

    name: str
    note: str
    input_size: tuple[int, int]
    before: Image.Image
    after: Image.Image


def write(source: Dataset, output: Dataset, images: Snapshot, restorations: Snapshot) -> None:
    """Draw the first pictures by name."""
    names = {source_id: files[0] for source_id, files in file_names(positions_of(source)).items()}
    chosen = sorted((name, one) for one, name in names.items())
    made = _rows(output, restorations, ["source_id"])
    there = {row["source_id"]: shard for shard, row in made}
    first = [(name, one) for name, one in chosen if one in there][:MOST]
    if not first:
        return
    pairs = (_pair(source, output, images, restorations, there[one], one, name) for name, one in first)
    data = draw(pairs, len(first), of=len(there))
    if put_if_changed(output.store, NAME, data):
        print(f"before and after: {output.store.url}/{NAME}", flush=True)


def draw(pairs: Iterable[Pair], count: int, of: int) -> bytes:
    """The sheet as PNG; pairs are taken one after the other."""
    import numpy as np
    from PIL import Image, ImageDraw

    from supir_model.images import encode_png

    width = 2 * MARGIN + 4 * CELL + 3 * GAP
    sheet = Image.new("RGB", (width, HEADER + count * (CELL + LABEL + GAP) + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 20), "Before and after", INK, _font(26))
    shown = f"{count} of {of} pictures" if count < of else f"{count} picture{'s' * (count > 1)}"
    pen.text((width - MARGIN, 30), shown, QUIET, _font(15), anchor="ra")
    for column, title in enumerate(COLUMNS):
        pen.text((MARGIN + column * (CELL + GAP), HEADER - 20), title, QUIET, _font(13))
    for row, pair in enumerate(pairs):
        _draw_pair(sheet, pen, pair, HEADER + row * (CELL + LABEL + GAP))
    return encode_png(np.array(sheet))


def _draw_pair(sheet: Image.Image, pen: Any, pair: Pair, top: int) -> None:
    from PIL import Image

    box = richest(pair.after)
    zoom = CELL / (box[2] - box[0])
    for column, picture in enumerate((pair.before, pair.after)):
        whole = picture.copy()
        whole.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        left = MARGIN + column * (CELL + GAP) + (CELL - whole.width) // 2
        above = top + (CELL - whole.height) // 2
        sheet.paste(whole, (left, above))
        scale = whole.width / picture.width
        pen.rectangle([left + box[0] * scale, above + box[1] * scale, left + box[2] * scale - 1, above + box[3] * scale - 1], None, MARK)
        detail = picture.crop(box).resize((CELL, CELL), Image.Resampling.BICUBIC)
        sheet.paste(detail, (MARGIN + (column + 2) * (CELL + GAP), top))
    (width, height), line = pair.input_size, top + CELL + 7
    sizes = f"{width} x {height}  to  {pair.after.width} x {pair.after.height} pixels, detail enlarged {zoom:.1f} times"
    right = sheet.width - MARGIN
    pen.text((right, line + 1), sizes, QUIET, _font(14), anchor="ra")
    pen.text((MARGIN, line), _fitted(pen, pair.name, _font(16), right - MARGIN - pen.textlength(sizes, _font(14)) - 24), INK, _font(16))
    pen.text((MARGIN, line + 22), _fitted(pen, pair.note, _font(13), right - MARGIN), QUIET, _font(13))


def richest(picture: Image.Image) -> tuple[int, int, int, int]:
    """The square (left, top, right, bottom) with the most fine structure: half the short side, or what fills a cell at its own size."""
    import cv2
    import numpy as np

    grey_HW = np.asarray(picture.convert("L"), dtype=np.float32)
    side = max(1, min(CELL, min(grey_HW.shape) // 2))
    busy_HW = cv2.boxFilter(np.abs(cv2.Laplacian(grey_HW, cv2.CV_32F)), -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_REFLECT)
    inside_HW = busy_HW[: grey_HW.shape[0] - side + 1, : grey_HW.shape[1] - side + 1]
    top, left = (int(i) for i in np.unravel_index(inside_HW.argmax(), inside_HW.shape))
    return left, top, left + side, top + side


def _pair(source: Dataset, output: Dataset, images: Snapshot, restorations: Snapshot, shard: str, source_id: str, name: str) -> Pair:
    from PIL import Image

    from supir_model.images import decode

    row = _row(output, restorations, shard, source_id, ["source_id", "bytes", "caption"])
    before = Image.fromarray(decode(_row(source, images, shard, source_id, ["source_id", "bytes"])["bytes"]).rgb_HWC)
    after = Image.fromarray(decode(row["bytes"]).rgb_HWC)
    return Pair(name, row["caption"], before.size, before.resize(after.size, Image.Resampling.BICUBIC), after)


def _rows(dataset: Dataset, snapshot: Snapshot, columns: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for shard, ref in snapshot.shards.items():
        yield from ((shard, row) for row in dataset.read(ref, columns).to_pylist())


def _row(dataset: Dataset, snapshot: Snapshot, shard: str, source_id: str, columns: list[str]) -> dict[str, Any]:
    rows = dataset.read(snapshot.shards[shard], columns).to_pylist()
    return next(row for row in rows if row["source_id"] == source_id)


def _fitted(pen: Any, text: str, font: Any, width: float) -> str:
    while text and pen.textlength(text, font) > width:
        text = text[: -len(text) // 20 - 2].rstrip(" …") + " …"
    return text


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
