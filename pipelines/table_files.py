"""Tables as files: Parquet, CSV, TSV or text (one URL a line) at any address, read in batches of mapped columns; nothing is held.

A table is one of three kinds: `url` (its rows are asked for on the web), `cell` (Parquet with the pictures in it, as Hugging Face and
img2dataset write it: a binary column, or a struct with `bytes`) and `record` (what img2dataset writes beside its tars and folders:
only the rows that it failed to fetch are new). Which one is told by the columns.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import Store
from pipelines import table_text
from pipelines.table_columns import (
    NUMBERS,
    RECORD,
    TEXTS,
    USUAL,
    Columns,
    UnusableTable,
    as_numbers,
    as_text,
    image_column,
    is_text,
    map_columns,
    names_of,
    pick,
    short,
    type_of,
)
from pipelines.table_text import BATCH_ROWS

BUFFER_BYTES = 1 << 20  # pages are read through this much, not whole row groups
NAME = re.compile(r"\.(parquet|(csv|tsv|txt)\d*(\.gz)?)$", re.IGNORECASE)  # Unsplash ships photos.tsv000


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """One table that can be read: `mapping` has our columns and their names in it; `rows` where the file tells it."""

    store: Store
    key: str
    kind: str  # url, cell, record
    mapping: dict[str, str]
    size_bytes: int
    rows: int | None = None

    def batches(self) -> Iterator[pa.Table]:
        """The mapped columns (TEXTS as strings, NUMBERS as int64, and of records those in RECORD), in order."""
        wanted = [name for name in (*TEXTS, *NUMBERS, *RECORD) if name in self.mapping]
        names = [self.mapping[name] for name in wanted]
        with _open(self.store, self.key) as file:
            for raw in _parquet(file, names, self.key) if _is_parquet(self.key) else table_text.batches(file, self.key, names):
                columns = [as_numbers(raw.column(i)) if name in NUMBERS else as_text(raw.column(i), names[i], name, self.key)
                           for i, name in enumerate(wanted)]
                yield pa.table(columns, names=wanted) if wanted else pa.table({"row": pa.nulls(raw.num_rows)})


def is_table(key: str) -> bool:
    """Whether a name is a table's."""
    return NAME.search(key) is not None


def look(store: Store, key: str, columns: Columns, beside: bool = False) -> TableFile:
    """What a table holds. `beside`: a tar or folder of the same stem lies beside it. Raises UnusableTable."""
    size_bytes = store.size(key)
    if not _is_parquet(key):
        mapping = map_columns(_header(store, key), columns, key)
        return TableFile(store=store, key=key, kind="url", mapping=mapping, size_bytes=size_bytes)
    with _open(store, key) as file:
        parquet = _opened(file, key)
        schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    image = image_column(schema, columns.image, key)
    record = all(schema.names.count(name) == 1 for name in RECORD)
    kind = "cell" if image else "record" if record and beside else "url"
    mapping = map_columns(names_of(schema), columns, key, needs_url=kind != "cell") | ({"image": image} if image else {})
    if record:
        mapping |= {name: name for name in RECORD}
    if "url" in mapping and kind != "cell" and not is_text(type_of(schema, mapping["url"])):
        raise UnusableTable("unknown_schema", f"{key}: column {mapping['url']!r} is {type_of(schema, mapping['url'])}, expected text: "
                                              "name the column of the addresses with --set columns.url=…")
    return TableFile(store=store, key=key, kind=kind, mapping=mapping, size_bytes=size_bytes, rows=rows)


def lists_urls(store: Store, key: str) -> bool:
    """Whether a CSV has addresses, and no column `file`. Raises NotFound and UnusableTable."""
    names = {name.lower() for name in _header(store, key)}
    return "file" not in names and not names.isdisjoint(USUAL["url"])


def told_by_record(store: Store, key: str, columns: Columns) -> dict[str, dict[str, Any]]:
    """img2dataset's key of a picture -> what its record says of it; empty where the table is no such record. Raises UnusableTable."""
    table = look(store, key, columns, beside=True)
    if table.kind != "record":
        return {}
    return {str(row["key"]): row for batch in table.batches() for row in batch.drop_columns(list(RECORD[1:])).to_pylist()}


def cells(store: Store, key: str, asked: str, wanted: Sequence[int]) -> dict[int, bytes | None]:
    """The encoded pictures in those rows of a Parquet file; None where there is none. Reads only the row groups that hold them."""
    with _open(store, key) as file:
        parquet = _opened(file, key)
        name = image_column(parquet.schema_arrow, asked, key)
        if not name:
            raise UnusableTable("unknown_schema", f"{key} has no column with pictures any more: restore it as it was listed")
        found: dict[int, bytes | None] = {}
        first = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            here = {row - first for row in wanted if first <= row < first + rows}
            found |= {first + row: data for row, data in _group_cells(parquet, group, name, here)}
            first += rows
    return found


def _group_cells(parquet: pq.ParquetFile, group: int, name: str, wanted: set[int]) -> Iterator[tuple[int, bytes | None]]:
    start, last = 0, max(wanted, default=-1)
    if last < 0:
        return
    for batch in parquet.iter_batches(batch_size=16, row_groups=[group], columns=[name], use_threads=False):
        column = pick(batch, name)
        values = column.field("bytes") if pa.types.is_struct(column.type) else column
        for i in range(len(batch)):
            if start + i in wanted:
                yield start + i, values[i].as_py() if column[i].is_valid else None
        start += len(batch)
        if start > last:
            return


def _is_parquet(key: str) -> bool:
    return key.lower().endswith(".parquet")


def _open(store: Store, key: str) -> BinaryIO:
    file = store.open(key)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if key.lower().endswith(".gz") else file


def _opened(file: BinaryIO, key: str) -> pq.ParquetFile:
    """Read page by page. Raises UnusableTable."""
    try:
        parquet = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        names_of(parquet.schema_arrow)  # those of a damaged file may be no UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UnusableTable("unreadable_table", f"{key} is no whole Parquet file ({short(error)}): fetch it again") from error
    return parquet


def _parquet(file: BinaryIO, names: list[str], key: str) -> Iterator[pa.Table]:
    parquet = _opened(file, key)
    if not names:
        for group in range(parquet.num_row_groups):
            yield pa.table({"row": pa.nulls(parquet.metadata.row_group(group).num_rows)})
        return
    try:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=list(dict.fromkeys(names)), use_threads=False):
            yield pa.table([pick(batch, name) for name in names], names=[str(i) for i in range(len(names))])
    except (pa.ArrowException, OSError) as error:
        raise UnusableTable("unreadable_table", f"{key} breaks off ({short(error)}): fetch it again") from error


def _header(store: Store, key: str) -> list[str]:
    with _open(store, key) as file:
        return table_text.header(file, key)
