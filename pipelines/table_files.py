"""Tables as files: Parquet, CSV, TSV or text (one URL a line) at any address, read in batches of mapped columns; nothing is held.

A table is one of three kinds: `url` (its rows are asked for on the web), `cell` (Parquet with the pictures in it, as Hugging Face and
img2dataset write it: a binary column, or a struct with `bytes`) and `record` (what img2dataset writes beside its tars and folders:
only the rows that it failed to fetch are new). Which one is told by the columns.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage import Store

BATCH_ROWS = 16_384  # choice: 4 MB of URLs and captions
BUFFER_BYTES = 1 << 20  # pages are read through this much, not whole row groups
NAME = re.compile(r"\.(parquet|(csv|tsv|txt)\d*(\.gz)?)$", re.IGNORECASE)  # Unsplash ships photos.tsv000
TEXTS = ("url", "caption", "licence", "licence_url", "attribution", "source_url")
NUMBERS = ("width", "height")
USUAL = {  # our column -> what others call it, compared without regard to case; the first that is there is taken
    "url": ("url", "image_url", "photo_image_url", "img_url", "content_url"),
    "image": ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes"),
    "caption": ("caption", "text", "txt", "prompt", "alt_text"),
    "licence": ("licence", "license", "license_name", "licensename", "license_type"),
    "licence_url": ("licence_url", "license_url", "licenseurl"),
    "attribution": ("attribution", "author", "creator", "credit", "photographer", "photographer_username", "unickname"),
    "source_url": (),
    "width": ("width", "photo_width", "original_width"),
    "height": ("height", "photo_height", "original_height"),
}
RECORD = ("key", "status", "error_message")  # columns by which img2dataset's own tables are known
NO_COLUMN = "none"
DELIMITERS = ",;\t|"
FIELD_CHARS = 1 << 20  # choice: longer than any caption, shorter than what a quote that is never closed swallows
LINE_CHARS = 1 << 22  # choice: several such fields; a gzip of 1 MB may hold one line of 1 GB
BROKEN_TEXT = (csv.Error, OSError, EOFError, zlib.error)


class UnusableTable(ValueError):
    """A table that is broken, or has not the columns that are needed. `code` fits a ledger."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of a table is what; empty: the usual names (USUAL); `none`: no column. `a.b` is the field b of the struct a."""

    url: str = ""
    image: str = ""  # Parquet with pictures in it
    caption: str = ""
    licence: str = ""
    licence_url: str = ""
    attribution: str = ""
    source_url: str = ""  # the page of a picture, where it is not the URL itself
    width: str = ""
    height: str = ""


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
            for raw in _parquet(file, names, self.key) if _is_parquet(self.key) else _lines(file, self.key, names):
                columns = [_number(raw.column(i)) if name in NUMBERS else _text(raw.column(i), names[i], name, self.key)
                           for i, name in enumerate(wanted)]
                yield pa.table(columns, names=wanted) if wanted else pa.table({"row": pa.nulls(raw.num_rows)})


def is_table(key: str) -> bool:
    """Whether a name is a table's."""
    return NAME.search(key) is not None


def look(store: Store, key: str, columns: Columns, beside: bool = False) -> TableFile:
    """What a table holds. `beside`: a tar or folder of the same stem lies beside it. Raises UnusableTable."""
    size_bytes = store.size(key)
    if not _is_parquet(key):
        mapping = _map(_header(store, key), columns, key)
        return TableFile(store=store, key=key, kind="url", mapping=mapping, size_bytes=size_bytes)
    with _open(store, key) as file:
        try:
            parquet = pq.ParquetFile(file)
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise UnusableTable("unreadable_table", f"{key} is no whole Parquet file ({_short(error)}): fetch it again") from error
    image = image_column(schema, columns.image, key)
    record = all(schema.names.count(name) == 1 for name in RECORD)
    kind = "cell" if image else "record" if record and beside else "url"
    mapping = _map(_names(schema), columns, key, needs_url=kind != "cell") | ({"image": image} if image else {})
    if record:
        mapping |= {name: name for name in RECORD}
    if "url" in mapping and kind != "cell" and not _is_text(_type(schema, mapping["url"])):
        raise UnusableTable("unknown_schema", f"{key}: column {mapping['url']!r} is {_type(schema, mapping['url'])}, expected text: "
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


def image_column(schema: pa.Schema, asked: str, key: str) -> str:
    """The column with encoded pictures, or ''. Raises UnusableTable if the one that was asked for is missing or holds none."""
    if asked == NO_COLUMN:
        return ""
    if asked:
        name = _find(_names(schema), asked, "image", key)
        if not _holds_bytes(_type(schema, name)):
            raise UnusableTable("unknown_schema", f"{key}: column {name!r} is {_type(schema, name)}, expected binary or a struct with "
                                                  "binary `bytes`: name the column of the pictures with --set columns.image=…")
        return name
    lower = {name.lower(): name for name in reversed(schema.names) if schema.names.count(name) == 1}
    found = [lower[name] for name in USUAL["image"] if name in lower and _holds_bytes(schema.field(lower[name]).type)]
    return found[0] if found else ""


def cells(store: Store, key: str, asked: str, wanted: Sequence[int]) -> dict[int, bytes | None]:
    """The encoded pictures in those rows of a Parquet file; None where there is none. Reads only the row groups that hold them."""
    with _open(store, key) as file:
        parquet = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        name = image_column(parquet.schema_arrow, asked, key)
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
        column = _pick(batch, name)
        values = column.field("bytes") if pa.types.is_struct(column.type) else column
        for i in range(len(batch)):
            if start + i in wanted:
                yield start + i, values[i].as_py() if column[i].is_valid else None
        start += len(batch)
        if start > last:
            return


# columns

def _map(names: Sequence[str], columns: Columns, key: str, needs_url: bool = True) -> dict[str, str]:
    mapping: dict[str, str] = {}
    lower = {name.lower(): name for name in reversed(names)}
    for ours, asked in asdict(columns).items():
        if ours == "image" or asked == NO_COLUMN:
            continue
        usual = next((lower[name] for name in USUAL[ours] if name in lower), "")
        found = _find(names, asked or usual, ours, key) if asked or usual else ""
        if found:
            mapping[ours] = found
    if needs_url and "url" not in mapping:
        near = difflib.get_close_matches("url", [name.lower() for name in names], n=1, cutoff=0.4)
        hint = f"; the nearest is {lower[near[0]]!r}" if near else ""
        raise UnusableTable("unknown_schema", f"{key} has the columns {', '.join(map(repr, names)) or 'none'}, and none is known to hold "
                                              f"addresses or pictures{hint}: name it with --set columns.url=… (or columns.image=…)")
    return mapping


def _find(names: Sequence[str], asked: str, ours: str, key: str) -> str:
    if names.count(asked) > 1:
        raise UnusableTable("unknown_schema", f"{key} has several columns {asked!r}: rename all but one, or name another one with "
                                              f"--set columns.{ours}=…")
    if asked in names:
        return asked
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(asked.lower(), lower, n=1)
    hint = f"did you mean {lower[near[0]]!r}?" if near else f"it has {', '.join(map(repr, names))}"
    raise UnusableTable("unknown_schema", f"{key} has no column {asked!r} (columns.{ours}): {hint}")


def _names(schema: pa.Schema) -> list[str]:
    """Of all columns, and of the fields of structs as `struct.field`."""
    structs = [field for field in schema if pa.types.is_struct(field.type)]
    return [*schema.names, *(f"{one.name}.{inner}" for one in structs for inner in _names(pa.schema(one.type.fields)))]


def _type(schema: pa.Schema, name: str) -> pa.DataType:
    if name in schema.names:
        return schema.field(name).type
    outer, inner = next((one, name.removeprefix(f"{one}.")) for one in schema.names if name.startswith(f"{one}."))
    return _type(pa.schema(schema.field(outer).type.fields), inner)


def _pick(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column, or a field of a struct."""
    if name in batch.schema.names:
        return batch.column(name)
    outer, inner = next((one, name.removeprefix(f"{one}.")) for one in batch.schema.names if name.startswith(f"{one}."))
    found = batch.column(outer)
    return _pick(pa.RecordBatch.from_arrays(found.flatten(), names=[field.name for field in found.type.fields]), inner)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind))


def _text(column: pa.ChunkedArray, name: str, ours: str, key: str) -> pa.ChunkedArray:
    """As text, with null where there is nothing, and U+FFFD for what is no UTF-8."""
    kind = column.type
    if pa.types.is_nested(kind) or _holds_bytes(kind):
        raise UnusableTable("unknown_schema", f"{key}: column {name!r} is {kind}, expected text or numbers: name another one with --set "
                                              f"columns.{ours}=…, or leave it out with --set columns.{ours}={NO_COLUMN}")
    text = pc.cast(column, pa.string())
    try:
        text.validate(full=True)  # Parquet does not see to it
    except pa.ArrowInvalid:
        data = pc.cast(text, pa.binary()).to_pylist()
        text = pa.chunked_array([pa.array([one if one is None else one.decode("utf-8", "replace") for one in data], pa.string())])
    return pc.if_else(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0), pa.scalar(None, pa.string()), text)


def _number(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """As whole numbers, with null for what is none, and for 0 and less, with which lists say that they do not know."""
    nothing = pa.scalar(None, pa.int64())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
    try:
        numbers = pc.cast(column, pa.int64(), safe=False)
    except pa.ArrowException:
        values = (str(value).strip() for value in column.to_pylist())
        numbers = pa.chunked_array([pa.array([int(float(v)) if re.fullmatch(r"\d{1,9}(\.\d*)?", v) else None for v in values], pa.int64())])
    return pc.if_else(pc.greater(numbers, 0), numbers, nothing)


# files

def _is_parquet(key: str) -> bool:
    return key.lower().endswith(".parquet")


def _open(store: Store, key: str) -> BinaryIO:
    file = store.open(key)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if key.lower().endswith(".gz") else file


def _parquet(file: BinaryIO, names: list[str], key: str) -> Iterator[pa.Table]:
    parquet = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
    if not names:
        for group in range(parquet.num_row_groups):
            yield pa.table({"row": pa.nulls(parquet.metadata.row_group(group).num_rows)})
        return
    try:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=list(dict.fromkeys(names)), use_threads=False):
            yield pa.table([_pick(batch, name) for name in names], names=[str(i) for i in range(len(names))])
    except (pa.ArrowException, OSError) as error:
        raise UnusableTable("unreadable_table", f"{key} breaks off ({_short(error)}): fetch it again") from error


def _reader(file: BinaryIO, key: str) -> Any:
    """Rows of text."""
    csv.field_size_limit(FIELD_CHARS)
    lines = _text_lines(file, newline="")
    first = list(itertools.islice(lines, 1))
    delimiter = "\t" if ".tsv" in key.lower() else delimiter_of("".join(first))
    return csv.reader(itertools.chain(first, lines), delimiter=delimiter)


def delimiter_of(header: str) -> str:
    """What stands most often in the header of a CSV, a comma where nothing does: spreadsheets of half the world write semicolons."""
    return max(DELIMITERS, key=header.count)


def _text_lines(file: BinaryIO, newline: str | None = None) -> Iterator[str]:
    """Lines of text: UTF-8, or UTF-16 where its mark stands in front, as spreadsheets save `Unicode text`. Raises csv.Error at a line
    that is longer than a row can be."""
    marked = cast(io.BufferedReader, file).peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    text = io.TextIOWrapper(file, "utf-16" if marked else "utf-8-sig", errors="replace", newline=newline)
    while line := text.readline(LINE_CHARS):
        if len(line) == LINE_CHARS:
            raise csv.Error(f"a line of {LINE_CHARS:,} characters or more")
        yield line


def _is_list(key: str) -> bool:
    """Text with one URL a line, and no header."""
    return re.search(r"\.txt\d*(\.gz)?$", key, re.IGNORECASE) is not None


def _header(store: Store, key: str) -> list[str]:
    if _is_list(key):
        return ["url"]
    with _open(store, key) as file:
        try:
            return [name.strip() for name in next(_reader(file, key), [])]
        except BROKEN_TEXT as error:
            raise UnusableTable("unreadable_table", f"{key} cannot be read ({_short(error)}): "
                                                    "fetch it again, or save it as CSV in UTF-8") from error


def _lines(file: BinaryIO, key: str, names: list[str]) -> Iterator[pa.Table]:
    """Rows of text. What is no UTF-8 becomes U+FFFD; a row that is too short has nulls; no row is an empty line, nor in
    text, where nothing else says what a line is, one that begins with `#`.
    """
    rows: list[list[str]] = []
    lines: Any = None
    try:
        if _is_list(key):
            stripped = (line.strip() for line in _text_lines(file))
            lines, places = ([line] for line in stripped if line and not line.startswith("#")), [0]
        else:
            lines = _reader(file, key)
            header = [name.strip() for name in next(lines, [])]
            places = [header.index(name) for name in names]
        for row in lines:
            if row:
                rows.append(row)
            if len(rows) == BATCH_ROWS:
                yield _columns_of(rows, places)
                rows = []
    except BROKEN_TEXT as error:
        raise UnusableTable("unreadable_table", f"{key} breaks off behind line {getattr(lines, 'line_num', '?')} "
                                                f"({_short(error)}): fetch it again, or mend that line") from error
    if rows:
        yield _columns_of(rows, places)


def _columns_of(rows: list[list[str]], places: list[int]) -> pa.Table:
    columns = [pa.array([row[place] if place < len(row) else None for row in rows], pa.string()) for place in places]
    return pa.table(columns, names=[str(i) for i in range(len(places))])


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
