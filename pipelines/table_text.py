"""Lists as people write them: CSV and TSV with a header, or text with one URL a line; nothing is held but a batch of rows."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipelines.table_columns import UnusableTable, short

BATCH_ROWS = 16_384  # choice: 4 MB of URLs and captions
DELIMITERS = ",;\t|"
FIELD_CHARS = 1 << 20  # choice: longer than any caption, shorter than what a quote that is never closed swallows
LINE_CHARS = 1 << 22  # choice: several such fields; a gzip of 1 MB may hold one line of 1 GB
BROKEN_TEXT = (csv.Error, OSError, EOFError, zlib.error)


def header(file: BinaryIO, key: str) -> list[str]:
    """The names of the columns. Raises UnusableTable."""
    if _is_list(key):
        return ["url"]
    try:
        return [name.strip() for name in next(_rows(file, key), [])]
    except BROKEN_TEXT as error:
        raise UnusableTable("unreadable_table", f"{key} cannot be read ({short(error)}): "
                                                "fetch it again, or save it as CSV in UTF-8") from error


def batches(file: BinaryIO, key: str, names: list[str]) -> Iterator[pa.Table]:
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
            lines = _rows(file, key)
            there = [name.strip() for name in next(lines, [])]
            places = [there.index(name) for name in names]
        for row in lines:
            if row:
                rows.append(row)
            if len(rows) == BATCH_ROWS:
                yield _columns_of(rows, places)
                rows = []
    except BROKEN_TEXT as error:
        raise UnusableTable("unreadable_table", f"{key} breaks off behind line {getattr(lines, 'line_num', '?')} "
                                                f"({short(error)}): fetch it again, or mend that line") from error
    if rows:
        yield _columns_of(rows, places)


def delimiter_of(header: str) -> str:
    """What stands most often in the header of a CSV, a comma where nothing does: spreadsheets of half the world write semicolons."""
    return max(DELIMITERS, key=header.count)


def _rows(file: BinaryIO, key: str) -> Any:
    """Rows of text."""
    csv.field_size_limit(FIELD_CHARS)
    lines = _text_lines(file, newline="")
    first = list(itertools.islice(lines, 1))
    delimiter = "\t" if ".tsv" in key.lower() else delimiter_of("".join(first))
    return csv.reader(itertools.chain(first, lines), delimiter=delimiter)


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


def _columns_of(rows: list[list[str]], places: list[int]) -> pa.Table:
    columns = [pa.array([row[place] if place < len(row) else None for row in rows], pa.string()) for place in places]
    return pa.table(columns, names=[str(i) for i in range(len(places))])
