"""A shard on its way into its file: the same rows, and pictures that are let go as they are written."""

from __future__ import annotations

import hashlib
import io
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.shard_file import ROW_GROUP_ROWS, RowGroups, _HashingBehind, encode, write_hashed

SCHEMA = pa.schema([("image_id", pa.string()), ("bytes", pa.binary())])
ROWS = 4 * ROW_GROUP_ROWS


class Picture(bytearray):
    """Bytes that can be watched."""


def table_of(pictures: list[Picture]) -> pa.Table:
    offsets = pa.py_buffer(b"\0\0\0\0\x04\0\0\0")
    chunks = [pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(one)]) for one in pictures]
    return pa.table([pa.array([str(i) for i in range(len(pictures))]), pa.chunked_array(chunks, pa.binary())], schema=SCHEMA)


class Sink(io.BytesIO):
    """Counts at each write how many of the watched pictures are still there."""

    def __init__(self, watched: list[Any]) -> None:
        super().__init__()
        self.watched = watched
        self.held: list[int] = []

    def there(self) -> int:
        return sum(one() is not None for one in self.watched)

    def write(self, data: Any) -> int:
        self.held.append(self.there())
        return super().write(data)


def written(let_go: bool) -> tuple[Sink, list[int]]:
    """(what was written, how many pictures were held each time when room was told)."""
    pictures = [Picture(b"%04d" % i) for i in range(ROWS)]
    sink = Sink([weakref.ref(one) for one in pictures])
    told: list[int] = []
    groups = RowGroups(table_of(pictures), on_half=(lambda: told.append(sink.there())) if let_go else None)
    del pictures
    encode(groups, sink)
    return sink, told


def test_pictures_are_let_go_group_by_group() -> None:
    sink, told = written(let_go=True)
    assert sink.held[0] == ROWS
    assert sink.held[-1] == 0
    assert told[0] <= ROWS // 2, "there is room for the next shard when half of this one is written"
    assert told[0] >= ROWS // 4


def test_the_file_is_the_same() -> None:
    kept, let_go = written(let_go=False)[0], written(let_go=True)[0]
    assert kept.getvalue() == let_go.getvalue()
    assert pq.ParquetFile(kept).read()["bytes"].to_pylist() == [b"%04d" % i for i in range(ROWS)]
    assert pq.ParquetFile(kept).num_row_groups == 4


def test_what_is_kept_can_be_written_again() -> None:
    """A server that was away is asked again: S3 keeps the rows until they are there."""
    groups = RowGroups(table_of([Picture(b"abcd") for _ in range(ROWS)]), on_half=lambda: pytest.fail("nothing is let go"))
    groups.keep()
    first, second = io.BytesIO(), io.BytesIO()
    encode(groups, first)
    encode(groups, second)
    assert first.getvalue() == second.getvalue()


def test_a_table_without_pictures_or_rows_needs_no_room() -> None:
    told: list[bool] = []
    RowGroups(pa.table({"x": [1]}), on_half=lambda: told.append(True))
    assert told == [True]
    sink = io.BytesIO()
    encode(RowGroups(SCHEMA.empty_table()), sink)
    assert pq.ParquetFile(sink).read().schema == SCHEMA


def test_a_file_of_this_disk_has_the_bytes_and_the_digest_of_any_other(tmp_path: Path) -> None:
    table = table_of([Picture(b"%04d" % i) for i in range(ROWS)])
    elsewhere = io.BytesIO()
    expected = write_hashed(RowGroups(table), elsewhere)
    path = tmp_path / os.fsdecode(b"no Unicode \xff.parquet")
    with path.open("xb") as file:
        assert write_hashed(RowGroups(table), file) == expected
    assert path.read_bytes() == elsewhere.getvalue()
    assert hashlib.sha256(elsewhere.getvalue()).hexdigest() == expected


def test_a_file_that_is_shorter_than_what_was_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shard.parquet").write_bytes(b"0123456789")
    with ThreadPoolExecutor(1) as thread, (tmp_path / "shard.parquet").open("rb", buffering=0) as file:
        behind = _HashingBehind(file, thread)
        behind.reached(20)
        with pytest.raises(OSError, match="ends 10 bytes before"):
            behind.ends()
