"""inputs -> images: the original bytes, untouched, with what their header says. What cannot be read is a failed row with the reason.

Reasons: `vanished`, `unreadable` (permission), `outside_source` (a link that leads out of the source folder), `too_many_bytes`,
`cut_short` (a tar that ends inside the member), `storage_error`, and the codes of supir_model.images.ImageError: `empty`,
`not_an_image`, `too_many_pixels`, `animated`, … Pixels are not decoded here: what is broken behind a good header fails in `scores`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import pyarrow as pa

from infra.ledger import Outcome
from infra.storage import NotFound, OutsideStore, StorageError, open_store
from pipelines.runtime.stage import Result
from pipelines.sources import to_key

SCHEMA = pa.schema([
    ("image_id", pa.string()), ("source_id", pa.string()), ("bytes", pa.binary()), ("format", pa.string()), ("width", pa.int32()),
    ("height", pa.int32()), ("orientation", pa.int8()), ("colour_profile", pa.string()), ("source_url", pa.string()),
    ("licence", pa.string()), ("licence_url", pa.string()), ("attribution", pa.string()), ("retrieved_at", pa.string()),
])
CARRIED = ("source_id", "source_url", "licence", "licence_url", "attribution")
Row = dict[str, Any]


class Refused(Exception):
    """A row that was not taken; `code` is the reason in the ledger."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Reads the bytes of each row and its header."""

    max_bytes: int
    max_pixels: int
    threads: int = field(default=8, metadata={"result": False})
    name: str = "fetch"
    version: int = 1
    table: str = "images"
    row_id: str = "source_id"
    keeps_rejected: bool = False

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """`params["taken_down"]`: sources that must not be fetched again."""
        taken_down = set(params.get("taken_down", ()))
        asked = rows["inputs"].to_pylist()
        files = [list(same) for _, same in groupby(asked, key=_file_of)]  # members of one tar are read through one handle
        with ThreadPoolExecutor(self.threads) as pool:
            fetched = [one for some in pool.map(lambda same: list(self._fetch(same, taken_down)), files) for one in some]
        table = pa.Table.from_pylist([one for one in fetched if not isinstance(one, Outcome)], schema=SCHEMA)
        return Result(table, [one for one in fetched if isinstance(one, Outcome)])

    def _fetch(self, same_file: list[Row], taken_down: set[str]) -> Iterator[Row | Outcome]:
        wanted = [row for row in same_file if row["source_id"] not in taken_down]
        data = dict(zip((row["source_id"] for row in wanted), self._read(wanted)))
        for row in same_file:
            if row["source_id"] in taken_down:
                yield Outcome(row["source_id"], "rejected", "taken_down")
            else:
                yield self._image(row, data[row["source_id"]])

    def _image(self, row: Row, data: bytes | Refused) -> Row | Outcome:
        from supir_model.images import ImageError, sniff  # late: `--help` does not need it

        try:
            if isinstance(data, Refused):
                raise data
            info = sniff(data, max_pixels=self.max_pixels)
        except (Refused, ImageError) as error:
            return Outcome(row["source_id"], "failed", error.code, f"{row['position']}: {error}")
        found = {"image_id": hashlib.sha256(data).hexdigest(), "bytes": data, "format": info.format, "width": info.width,
                 "height": info.height, "orientation": info.orientation, "colour_profile": info.colour_profile,
                 "retrieved_at": datetime.now(UTC).isoformat(timespec="seconds")}
        return found | {name: row[name] for name in CARRIED}

    def _read(self, rows: list[Row]) -> Iterator[bytes | Refused]:
        """The bytes of rows of one file, in order."""
        if not rows:
            return
        try:
            if rows[0]["offset"] is None:
                yield self._whole(rows[0])
                return
            with open_store(rows[0]["address"]).open(_file_of(rows[0])[1]) as file:
                members = [self._member(file, row) for row in rows]
        except StorageError as error:
            members = [_refused(error)] * len(rows)
        except OSError as error:
            members = [Refused("storage_error", str(error))] * len(rows)
        yield from members

    def _whole(self, row: Row) -> bytes | Refused:
        size_bytes = int(row["size_bytes"])
        if size_bytes > self.max_bytes:
            return self._too_large(size_bytes)
        data = open_store(row["address"]).read(to_key(row["position"]))
        return data if len(data) <= self.max_bytes else self._too_large(len(data))

    def _member(self, file: Any, row: Row) -> bytes | Refused:
        size_bytes = int(row["size_bytes"])
        if size_bytes > self.max_bytes:
            return self._too_large(size_bytes)
        file.seek(row["offset"])
        data: bytes = file.read(size_bytes)
        if len(data) < size_bytes:
            return Refused("cut_short", f"the tar ends after {len(data)} of {size_bytes} bytes: fetch the tar again")
        return data

    def _too_large(self, size_bytes: int) -> Refused:
        return Refused("too_many_bytes", f"{size_bytes} bytes, at most {self.max_bytes} are taken: raise max_bytes or leave it out")


def _file_of(row: Row) -> tuple[str, str, str]:
    """What rows must share to be read through one handle: (address, key of the file, member of nothing)."""
    if row["offset"] is None:
        return row["address"], to_key(row["position"]), row["source_id"]
    return row["address"], to_key(row["position"].split("!", 1)[0]), ""


def _refused(error: StorageError) -> Refused:
    if isinstance(error, NotFound):
        return Refused("vanished", str(error))
    if isinstance(error, OutsideStore):
        return Refused("outside_source", str(error))
    return Refused("unreadable" if isinstance(error.__cause__, PermissionError) else "storage_error", str(error))
