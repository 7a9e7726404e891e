"""Content digests: one number for the row values of a table, whatever file, chunks or order of columns they come in. docs/data.md."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import infra.arrow_alone  # noqa: F401  # before the first value is made

VOLATILE = frozenset({"retrieved_at", "elapsed_s", "tar"})  # columns that content digests leave out; docs/data.md marks them
_NOTHING = b"v4:None"  # a null, as `_feed` writes it
_TEXT, _NUMBER, _COLON, _END, _NULL = pa.array(["s", "v", ":", "", _NOTHING.decode()])


def content_digest(table: pa.Table, volatile: frozenset[str] = VOLATILE, sha256_of: Mapping[str, str] | None = None) -> str:
    """sha256 over the row values, column by column in the order of their names, volatile columns left out.

    It does not depend on the file format, on compression, on chunks or on the order of the columns; it does depend on the order of rows.
    A binary value enters by its own sha256. `sha256_of` (column -> column with the hex digits of its values' sha256) spares hashing the
    bytes once more; the digest is the same.
    """
    total = hashlib.sha256()
    known = sha256_of or {}
    for name in sorted(set(table.column_names) - volatile):
        column = table.column(name)
        binary = pa.types.is_binary(column.type)
        total.update(f"\n{name}:{_type_name(column.type)}{' by sha256' if binary else ''}\n".encode())
        if binary:
            values = _hashes(column) if name not in known else table.column(known[name]).to_pylist()
            total.update(b"".join([_NOTHING if value is None else b"h" + bytes.fromhex(value) for value in values]))
        elif pa.types.is_string(column.type) or pa.types.is_integer(column.type):
            for chunk in column.chunks:
                total.update(_plain(chunk))
        else:
            for chunk in column.chunks:
                for value in chunk.to_pylist():
                    _feed(total, value)
    return total.hexdigest()


def slice_digests(table: pa.Table, rows: int) -> list[str]:
    """`content_digest` of each slice of so many rows of a table of texts and whole numbers: the work is done once for all of them."""
    columns = {name: _fed(table.column(name).combine_chunks()) for name in sorted(set(table.column_names) - VOLATILE)}
    found = []
    for low in range(0, table.num_rows, rows):
        total = hashlib.sha256()
        for name, (fed, offsets) in columns.items():
            total.update(f"\n{name}:{_type_name(table.schema.field(name).type)}\n".encode())
            total.update(fed[offsets[low]:offsets[min(low + rows, table.num_rows)]])
        found.append(total.hexdigest())
    return found


def _plain(chunk: pa.Array) -> bytes | memoryview:
    """What `_feed` would feed of texts and whole numbers, without a Python object for each."""
    if chunk.null_count == len(chunk):
        return _NOTHING * len(chunk)
    fed, offsets = _fed(chunk)
    return fed[offsets[0]:offsets[-1]]


def _fed(chunk: pa.Array) -> tuple[memoryview, Any]:
    """The same, and where each value's part of it begins and the last one ends."""
    mark = _TEXT if pa.types.is_string(chunk.type) else _NUMBER
    text = chunk.cast(pa.string())
    size_bytes = pc.binary_length(text).cast(pa.string())
    fed = pc.fill_null(pc.binary_join_element_wise(mark, size_bytes, _COLON, text, _END), _NULL)
    offsets = np.frombuffer(fed.buffers()[1], np.int32)[fed.offset:fed.offset + len(fed) + 1]
    return memoryview(fed.buffers()[2] or b""), offsets


def _hashes(column: pa.ChunkedArray) -> list[str | None]:
    """sha256 of each value, read where it lies: no second copy of a shard's images is held."""
    return [hashlib.sha256(value.as_buffer()).hexdigest() if value.is_valid else None for chunk in column.chunks for value in chunk]


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):  # Arrow and Parquet call the items of a list differently
        return f"list<{_type_name(kind.value_type)}>"
    return str(kind)


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, bytes):
        digest.update(b"b%d:" % len(value))
        digest.update(value)
    elif isinstance(value, str):
        text = value.encode()  # not repr, which differs between Unicode versions, so between Python versions
        digest.update(b"s%d:" % len(text) + text)
    elif isinstance(value, float):
        digest.update(b"f" + struct.pack("<d", value))
    elif isinstance(value, list):
        digest.update(b"l%d:" % len(value))
        for item in value:
            _feed(digest, item)
    else:
        text = repr(value).encode()
        digest.update(b"v%d:" % len(text) + text)
