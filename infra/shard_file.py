"""How a shard becomes a Parquet file: row group by row group, hashed beside the writing, each picture let go once it is written."""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

HASHED_BYTES = 8 * 2**20  # choice: at a time
ROW_GROUP_ROWS = 64  # choice: readers that want some rows of an image shard do not pay for all of it


class RowGroups:
    """The rows of a shard on their way into its file.

    With `on_half` each group of pictures is let go once it was written, so that whoever hands a table over, and keeps no name for it,
    has room for the next one before the last byte of it is on the disk: `on_half` is called when half of them are held. A table
    without pictures needs no room.
    """

    def __init__(self, table: pa.Table, on_half: Callable[[], None] | None = None) -> None:
        self.schema, self.num_rows = table.schema, table.num_rows
        self.binary = [field.name for field in table.schema if pa.types.is_binary(field.type)]
        rows = ROW_GROUP_ROWS if self.binary else max(1, table.num_rows)
        self._groups = deque(table.slice(first, rows) for first in range(0, table.num_rows, rows))
        self._on_half, self._half = on_half, len(self._groups) // 2
        if on_half and not self.binary:
            on_half()

    def whole(self) -> pa.Table:
        """All rows that are held."""
        return pa.concat_tables(self._groups) if self._groups else self.schema.empty_table()

    def keep(self) -> None:
        """Let nothing go: it may have to be written once more."""
        self._on_half = None

    def __iter__(self) -> Iterator[pa.Table]:
        if not self._on_half:
            yield from self._groups
            return
        while self._groups:
            yield self._groups.popleft()
            if len(self._groups) <= self._half:
                self._on_half()


def encode(groups: RowGroups, sink: Any, reached: Callable[[int], None] | None = None) -> None:
    """As Parquet; `reached` is told where the file ends after each row group.

    Encoded images do not compress: they are stored as they are. Nobody asks for the least and the most of a column. Measured: images
    that Parquet tries to put into a dictionary take three times as long to read, and are read in pieces; the other columns take a third
    less time, and space, without one: zstd finds what repeats.
    """
    others = [name for name in groups.schema.names if name not in groups.binary]
    compression = dict.fromkeys(groups.binary, "none") | dict.fromkeys(others, "zstd")
    with pq.ParquetWriter(sink, groups.schema, compression=compression, use_dictionary=False, write_statistics=False) as writer:
        for group in groups:
            writer.write_table(group)
            if reached:
                reached(sink.tell())
            del group  # before the next one is asked for


def write_hashed(groups: RowGroups, file: BinaryIO) -> str:
    """Write and return the sha256 of what was written."""
    if isinstance(file, io.BufferedWriter):
        return _write_here(groups, file.name)
    with ThreadPoolExecutor(1) as thread:
        hashing = _Hashing(file, thread)
        encode(groups, hashing)
        return hashing.total.hexdigest()


def _write_here(groups: RowGroups, name: str) -> str:
    """The same into a file of this disk."""
    with open(name, "rb", buffering=0) as seen, pa.OSFile(os.fsencode(name), "wb") as native, ThreadPoolExecutor(1) as thread:
        behind = _HashingBehind(seen, thread)
        encode(groups, native, behind.reached)
        native.flush()
        return behind.ends()


class _HashingBehind:
    """Hashes a file of this disk as it grows, in a thread, from what the system still has of it in memory.

    Measured: into a file of Python's, Arrow copies each page under Python's lock, which the thread that fetches needs; so Arrow writes
    by itself, and the bytes are read back.
    """

    def __init__(self, file: io.FileIO, thread: ThreadPoolExecutor) -> None:
        self.file, self.thread = file, thread
        self.total = hashlib.sha256()
        self._room = memoryview(bytearray(HASHED_BYTES))
        self._until = 0
        self._hashed: list[Future[None]] = []

    def reached(self, end: int) -> None:
        """The file holds so many bytes now."""
        self._hashed.append(self.thread.submit(self._hash, end - self._until))
        self._until = end

    def _hash(self, size_bytes: int) -> None:
        while size_bytes:
            count = self.file.readinto(self._room[:size_bytes])
            if not count:
                raise OSError(f"{self.file.name} ends {size_bytes} bytes before what was written to it: somebody else cut it")
            self.total.update(self._room[:count])
            size_bytes -= count

    def ends(self) -> str:
        """The digest of all that was written."""
        self.reached(os.fstat(self.file.fileno()).st_size)
        for one in self._hashed:
            one.result()
        return self.total.hexdigest()


class _Hashing(io.RawIOBase):
    """Hashes what goes into a file beside the writing: both leave Python's lock."""

    def __init__(self, file: BinaryIO, thread: ThreadPoolExecutor) -> None:
        self.file, self.thread = file, thread
        self.total = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        hashed = self.thread.submit(self.total.update, data)
        self.file.write(data)
        hashed.result()
        return len(data)
