"""images (+ selections, captions) -> WebDataset tars: one a shard, the same bytes for the same rows.

A picture is two or three members that share a stem, its image_id: the original bytes (`.jpg`, `.png`, …), the caption (`.txt`) and
its record of origin (`.json`). Members are sorted by name and carry no time or owner. A tar has an attempt-unique name, like every
data file; the row in the table `exports` names it, with its sha256. A shard in which a row killed its worker is cut in several tars.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from infra.ledger import Outcome
from infra.storage import unique_name
from infra.stores import open_store
from pipelines.runtime.stage import Result

SCHEMA = pa.schema([("image_id", pa.string()), ("source_id", pa.string()), ("member", pa.string()), ("captioned", pa.bool_()),
                    ("tar", pa.string()), ("tar_sha256", pa.string())])
ORIGIN = ("image_id", "source_id", "format", "width", "height", "orientation", "colour_profile", "source_url", "licence", "licence_url",
          "attribution")
SUFFIX = {"JPEG": "jpg", "TIFF": "tif"}  # others: the format's name in small letters
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Export:
    """Writes accepted pictures into tars under `output_url`. With `require_caption` a picture without one stays out."""

    require_caption: bool
    output_url: str = field(metadata={"result": False})
    name: str = "export"
    version: int = 1
    table: str = "exports"
    row_id: str = "source_id"
    keeps_rejected: bool = False

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """`params`: `shard`, for the name of the tar, and `taken_down`, source ids that must not leave."""
        selected = _selected(rows["selections"])
        captions = _captions(rows.get("captions"))
        outcomes: list[Outcome] = []
        kept: dict[str, Row] = {}
        order = [(row["source_id"], row["image_id"]) for row in rows["images"].select(["source_id", "image_id"]).to_pylist()]
        for index, (source, image) in enumerate(order):
            reason = self._refusal(source, image, selected, captions, kept, params)
            if reason:
                outcomes.append(Outcome(source, "rejected", reason))
            else:
                kept[image] = rows["images"].slice(index, 1).to_pylist()[0]
        table = self._write(list(kept.values()), captions, params["shard"]) if kept else SCHEMA.empty_table()
        return Result(table, outcomes)

    def _refusal(self, source: str, image: str, selected: dict[str, str], captions: dict[str, str], kept: dict[str, Row],
                 params: dict[str, Any]) -> str:
        if source in params.get("taken_down", ()):
            return "taken_down"
        if source not in selected:
            return "not_scored"
        if selected[source]:
            return selected[source]
        if image in kept:  # two members of one name would be one picture to a reader
            return "duplicate_exact"
        return "no_caption" if self.require_caption and image not in captions else ""

    def _write(self, kept: list[Row], captions: dict[str, str], shard: str) -> pa.Table:
        data = tar_of([member for row in kept for member in members_of(row, captions.get(row["image_id"]))])
        path = unique_name(f"{self.table}/{shard}", ".tar")
        open_store(self.output_url).put(path, data)
        sha256 = hashlib.sha256(data).hexdigest()
        return pa.Table.from_pylist([{"image_id": row["image_id"], "source_id": row["source_id"], "member": member_name(row),
                                      "captioned": row["image_id"] in captions, "tar": path, "tar_sha256": sha256} for row in kept],
                                    schema=SCHEMA)


def members_of(row: Row, caption: str | None) -> list[tuple[str, bytes]]:
    """(name, bytes) of what one picture becomes."""
    origin = {name: row[name] for name in ORIGIN if name in row}
    members = [(member_name(row), row["bytes"]), (f"{row['image_id']}.json", json.dumps(origin, sort_keys=True).encode())]
    return members if caption is None else [*members, (f"{row['image_id']}.txt", caption.encode())]


def member_name(row: Row) -> str:
    """The picture's own name in the tar."""
    return f"{row['image_id']}.{SUFFIX.get(row['format'], row['format'].lower())}"


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    """A tar of these members, sorted by name, the same bytes at any time on any machine."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in sorted(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def _selected(selections: pa.Table) -> dict[str, str]:
    """source_id -> why it was rejected, empty for accepted."""
    columns = [selections.column(name).to_pylist() for name in ("source_id", "accepted", "reason")]
    return {source: "" if accepted else reason for source, accepted, reason in zip(*columns, strict=True)}


def _captions(captions: pa.Table | None) -> dict[str, str]:
    if captions is None:
        return {}
    return dict(zip(captions.column("image_id").to_pylist(), captions.column("caption").to_pylist(), strict=True))
