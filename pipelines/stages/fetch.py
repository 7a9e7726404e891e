"""inputs -> images: the original bytes, untouched, with what their header says. What cannot be read is a failed row with the reason.

Reasons: `vanished`, `unreadable` (permission), `outside_source` (a link that leads out of the source folder), `too_many_bytes`,
`cut_short` (a tar that ends inside the member), `storage_error`, `unreadable_table`, those of pipelines/web/client.py for what is on the
web, and the codes of supir_model.images.ImageError: `empty`, `not_an_image`, `too_many_pixels`, `animated`, …
What the listing knew (`inputs.problem`): `null_url`, `failed_upstream`, `unknown_schema`, `broken_tar`, and rejected:
`duplicate_url`, `licence`, `told_too_small`.
Pixels are not decoded here: what is broken behind a good header fails in `scores`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from infra.ledger import Outcome
from infra.storage import NotFound, OutsideStore, StorageError
from infra.stores import open_store
from pipelines.refusal import Refused
from pipelines.runtime.stage import Result, TravelsAsFields
from pipelines.sources import to_key
from pipelines.table_columns import UnusableTable
from pipelines.table_files import cells
from pipelines.web.options import WebOptions

if TYPE_CHECKING:
    from pipelines.web.worker import Web

SCHEMA = pa.schema([
    ("image_id", pa.string()), ("source_id", pa.string()), ("bytes", pa.binary()), ("format", pa.string()), ("width", pa.int32()),
    ("height", pa.int32()), ("orientation", pa.int8()), ("colour_profile", pa.string()), ("source_url", pa.string()),
    ("licence", pa.string()), ("licence_url", pa.string()), ("attribution", pa.string()), ("retrieved_at", pa.string()),
])
CARRIED = ("source_id", "source_url", "licence", "licence_url", "attribution")
Row = dict[str, Any]


REJECTED = ("duplicate_url", "licence", "told_too_small")  # problems that are decisions of ours


@dataclass(frozen=True, kw_only=True)
class Fetch(TravelsAsFields):
    """Reads the bytes of each row and its header."""

    max_bytes: int
    max_pixels: int
    threads: int = field(default=8, metadata={"result": False})
    web: WebOptions = field(default_factory=WebOptions, metadata={"result": False})
    image_column: str = field(default="", metadata={"result": False})  # of Parquet with pictures; empty: the usual names
    shards_in_hand: int = field(default=2, metadata={"result": False})  # see Overlapping
    name: str = "fetch"
    version: int = 1
    table: str = "images"
    row_id: str = "source_id"
    keeps_rejected: bool = False

    def setup(self) -> None:
        """Nothing to load."""

    @cached_property
    def _web(self) -> Web:
        from pipelines.web.worker import Web  # late: `--help` does not need it

        return Web(self.web, self.max_bytes)

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """`params["taken_down"]`: sources that must not be fetched again."""
        taken_down = set(params.get("taken_down", ()))
        asked = rows["inputs"].to_pylist()
        known = {row["source_id"]: outcome for row in asked if (outcome := _known(row, taken_down))}
        open_rows = [row for row in asked if row["source_id"] not in known]
        found: dict[str, Row | Outcome] = {**known, **self._from_web([row for row in open_rows if row.get("kind") == "url"])}
        files = [list(same) for _, same in groupby((row for row in open_rows if row.get("kind") != "url"), key=_file_of)]
        with ThreadPoolExecutor(self.threads) as pool:  # members of one tar are read through one handle
            for some in pool.map(self._from_file, files):
                found |= some
        in_order = [found[row["source_id"]] for row in asked]
        table = _table([one for one in in_order if isinstance(one, dict)])
        return Result(table, [one for one in in_order if isinstance(one, Outcome)], sha256_of={"bytes": "image_id"})

    def _from_web(self, rows: list[Row]) -> dict[str, Row | Outcome]:
        if not rows:
            return {}
        answers = self._web.fetch_all([str(row.get("url") or row["source_url"]) for row in rows], self._describe)
        return {row["source_id"]: _finish(row, answer) for row, answer in zip(rows, answers, strict=True)}

    def _from_file(self, same_file: list[Row]) -> dict[str, Row | Outcome]:
        read = zip(same_file, self._read(same_file), strict=True)
        return {row["source_id"]: _finish(row, data if isinstance(data, Refused) else self._describe(data)) for row, data in read}

    def _describe(self, data: bytes) -> Row | Refused:
        """What a picture's bytes say of themselves."""
        from supir_model.images import ImageError, sniff  # late: `--help` does not need it

        try:
            info = sniff(data, max_pixels=self.max_pixels)
        except ImageError as error:
            return Refused(error.code, str(error))
        return {"image_id": hashlib.sha256(data).hexdigest(), "bytes": data, "format": info.format, "width": info.width,
                "height": info.height, "orientation": info.orientation, "colour_profile": info.colour_profile,
                "retrieved_at": datetime.now(UTC).isoformat(timespec="seconds")}

    def _read(self, rows: list[Row]) -> Iterator[bytes | Refused]:
        """The bytes of rows of one file, in order."""
        try:
            if rows[0].get("kind") == "cell":
                yield from list(self._cells(rows))
                return
            if rows[0]["offset"] is None:
                yield self._whole(rows[0])
                return
            with open_store(rows[0]["address"]).open(_file_of(rows[0])[1]) as file:
                members = [self._member(file, row) for row in rows]
        except UnusableTable as error:
            members = [Refused(error.code, str(error))] * len(rows)
        except pa.ArrowException as error:
            members = [Refused("unreadable_table", f"the Parquet file cannot be read ({error}): fetch it again")] * len(rows)
        except StorageError as error:
            members = [_refused(error)] * len(rows)
        except OSError as error:
            members = [Refused("storage_error", str(error))] * len(rows)
        yield from members

    def _cells(self, rows: list[Row]) -> Iterator[bytes | Refused]:
        data = cells(open_store(rows[0]["address"]), _file_of(rows[0])[1], self.image_column, [int(row["offset"]) for row in rows])
        for row in rows:
            one = data.get(int(row["offset"]))
            if one is None:
                yield Refused("empty", "the table has no bytes in this row")
            else:
                yield one if len(one) <= self.max_bytes else self._too_large(len(one))

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


def _table(pictures: list[Row]) -> pa.Table:
    """The rows as a table. The pictures' bytes are not copied: each is a chunk of its own, lying where it was read to."""
    place = SCHEMA.get_field_index("bytes")
    chunks = [pa.Array.from_buffers(pa.binary(), 1, [None, pa.py_buffer(struct.pack("=ii", 0, len(data))), pa.py_buffer(data)])
              for data in (row["bytes"] for row in pictures)]
    told = pa.Table.from_pylist(pictures, schema=SCHEMA.remove(place))
    return told.add_column(place, SCHEMA.field(place), pa.chunked_array(chunks, pa.binary()))


def _known(row: Row, taken_down: set[str]) -> Outcome | None:
    """The outcome of a row that needs no fetching."""
    if row["source_id"] in taken_down:
        return Outcome(row["source_id"], "rejected", "taken_down")
    code, _, detail = (row.get("problem") or "").partition(": ")
    if not code:
        return None
    return Outcome(row["source_id"], "rejected" if code in REJECTED else "failed", code, f"{row['position']}: {detail}".removesuffix(": "))


def _finish(row: Row, found: Row | Refused) -> Row | Outcome:
    """The picture with what its row says of it, or why there is none."""
    if isinstance(found, Refused):
        return Outcome(row["source_id"], found.status, found.code, f"{row['position']}: {found}")
    return found | {name: row[name] for name in CARRIED}


def _file_of(row: Row) -> tuple[str, str, str]:
    """What rows must share to be read through one handle: (address, key of the file, member of nothing)."""
    if row["offset"] is None:
        return row["address"], to_key(row["position"]), row["source_id"]
    if row.get("kind") == "cell":
        return row["address"], to_key(row["position"].rsplit("#", 1)[0]), ""
    return row["address"], to_key(row["position"].split("!", 1)[0]), ""


def _refused(error: StorageError) -> Refused:
    if isinstance(error, NotFound):
        return Refused("vanished", str(error))
    if isinstance(error, OutsideStore):
        return Refused("outside_source", str(error))
    return Refused("unreadable" if isinstance(error.__cause__, PermissionError) else "storage_error", str(error))
