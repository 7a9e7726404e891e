"""Rows of tables -> shards of the inputs table, batch by batch: the driver holds no rows.

Every row gets one row of `inputs`, whatever is wrong with it: `problem` has what the listing already knows (a null URL, one that stood
higher up, a licence that is not wanted), and fetching turns it into an outcome. The commit of a shard says which rows of which table
it covers and a digest of their addresses, so the same command goes on behind what is committed, in bounded memory, and a table that
was changed meanwhile is refused instead of half mixed. Rows that are appended to a table are new rows.

To know an address that stood higher up, a 64-bit hash of each is kept: 8 bytes a row (two different addresses of 20 million share
one with a probability of 1e-5).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.config import hash_config
from infra.dataset import Dataset
from infra.digest import slice_digests
from pipelines.inputs_table import SCHEMA, Piece, ShardLimits, Wanted, committed, source_id
from pipelines.sources import Source, to_position
from pipelines.table_columns import Columns, UnusableTable
from pipelines.table_files import TableFile
from pipelines.table_text import BATCH_ROWS
from pipelines.web.secrets_in_urls import SUSPECT, redact

Span = tuple[int, int, str]  # first row, row behind the last, digest


class Seen:
    """The hashes of all addresses so far, in a few sorted runs that are merged when they are of one size."""

    def __init__(self) -> None:
        self.runs: list[np.ndarray] = []

    def repeated(self, urls: Sequence[str | None]) -> np.ndarray:
        """Which of these stood higher up, here or in an earlier call; remembers them all. Nulls never did."""
        hashes = np.fromiter((hash(url) for url in urls), np.int64, len(urls))
        there = np.fromiter((url is not None for url in urls), np.bool_, len(urls))
        again = np.ones(len(urls), np.bool_)
        _, first = np.unique(np.where(there, hashes, 0), return_index=True)
        again[first] = False
        for run in self.runs:
            place = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            again |= run[place] == hashes
        self._add(np.unique(hashes[there & ~again]))
        return again & there

    def _add(self, run: np.ndarray) -> None:
        while self.runs and len(self.runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self.runs.pop(), run]))
        if len(run):
            self.runs.append(run)


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How tables become shards."""

    columns: Columns
    wanted: Wanted
    limits: ShardLimits
    expected_bytes: int  # of one photograph, to cut shards by before anything was fetched

    def rows_per_shard(self, table: TableFile) -> int:
        """Rows whose photographs are expected to fill a shard; of photographs in the table their mean size is known."""
        expected_bytes = _mean_bytes(table) if table.kind == "cell" else self.expected_bytes
        return max(1, min(self.limits.rows, self.limits.size_bytes // max(1, expected_bytes)))

    @cached_property
    def digest(self) -> str:
        """What else decides the rows of `inputs` beside the addresses."""
        return hash_config([asdict(self.columns), asdict(self.wanted)])


def pieces(dataset: Dataset, source: Source, name: str, options: TableOptions) -> Iterator[Piece]:
    """Shards for the rows of `source.tables` that no shard covers yet. Raises ValueError for a table that cannot be used or was changed."""
    covered = _covered(dataset, name)
    seen = Seen()
    for key in source.tables:
        spans = [span for span in covered[to_position(key)] if span[0] < span[1]]
        try:
            table = source.table(key, options.columns)
            yield from _table_pieces(table, name, options, seen, spans)
        except UnusableTable as error:
            if source.is_one_file:
                raise
            if len(spans) == len(covered[to_position(key)]):  # not told yet
                yield _unusable(source.address, name, key, error)


def tables_of(source: Source, columns: Columns) -> list[TableFile]:
    """The tables that can be used; of a single one that cannot, the reason is raised."""
    found = []
    for key in source.tables:
        try:
            found.append(source.table(key, columns))
        except UnusableTable:
            if source.is_one_file:
                raise
    return found


def _covered(dataset: Dataset, name: str) -> dict[str, list[Span]]:
    """Position of a table -> the spans of its rows that stand in shards, in order."""
    found: dict[str, list[Span]] = defaultdict(list)
    for ref in committed(dataset):
        for label, digest in ref.inputs.items():
            source, _, span = label.partition("\n")
            position, _, numbers = span.rpartition("#")
            if source == name:
                first, stop = map(int, numbers.split("-"))
                found[position].append((first, stop, digest))
    return defaultdict(list, {position: sorted(spans) for position, spans in found.items()})


def _label(name: str, key: str, first: int, stop: int) -> str:
    return f"{name}\n{to_position(key)}#{first}-{stop}"


def _unusable(address: str, name: str, key: str, error: UnusableTable) -> Piece:
    """A row for the table itself. It covers none of the table's rows, so that they are listed once the table was mended."""
    place = to_position(key)
    row = {"source_id": source_id(name, place), "address": address, "position": place, "size_bytes": 0, "kind": "url", "attempt": 0,
           "licence": "", "licence_url": "", "attribution": "", "source_url": "", "problem": f"{error.code}: {error}"}
    return Piece(pa.Table.from_pylist([row], schema=SCHEMA), covers={_label(name, key, 0, 0): error.code})


def _table_pieces(table: TableFile, name: str, options: TableOptions, seen: Seen, spans: list[Span]) -> Iterator[Piece]:
    done = {first: (stop, digest) for first, stop, digest in spans}
    size = options.rows_per_shard(table)
    at_once = size if table.kind == "record" else size * max(1, BATCH_ROWS // size)  # of records only some rows are kept
    found = 0
    for first, batch in _cut(_ahead(table.batches()), sorted(done.items()), size, at_once):
        found = first + batch.num_rows
        urls = batch.column("url").to_pylist() if _has_addresses(table, batch) else None
        if first in done:
            _check_unchanged(table, done[first], (first + batch.num_rows, _digest(table, urls, options)), first)
            seen.repeated(urls or [])
            continue
        rows = _rows(table, name, first, batch, urls, options, seen)
        for start, digest in zip(range(0, batch.num_rows, size), slice_digests(rows, size)):
            stop = min(start + size, batch.num_rows)
            covers = {_label(name, table.key, first + start, first + stop): _digest(table, urls and urls[start:stop], options)}
            yield Piece(rows.slice(start, size), covers=covers, digest=digest)
    if spans and table.kind != "record":
        _check_not_shorter(table, found, spans[-1][1])


def _check_unchanged(table: TableFile, before: tuple[int, str], now: tuple[int, str], first: int) -> None:
    if before != now:
        raise ValueError(f"{table.key}: rows {first} to {before[0] - 1} were listed before, and the table, the mapping of its columns or "
                         "the filter of licences has changed since: put new rows behind the old ones or into another table, or take "
                         "another --output (or source_name)")


def _check_not_shorter(table: TableFile, found: int, listed: int) -> None:
    if found < listed:
        raise ValueError(f"{table.key} has {found} rows, {listed} were listed before: restore it, or take another --output")


def _cut(batches: Iterator[pa.Table], done: list[tuple[int, tuple[int, str]]], rows: int,
         at_once: int) -> Iterator[tuple[int, pa.Table]]:
    """(first row, rows): spans that are covered as they were cut, then pieces of `rows`; behind the last span `at_once` rows in one."""
    held: list[pa.Table] = []
    held_rows = first = 0
    ahead = deque(done)

    def size() -> int:
        while ahead and ahead[0][0] < first:
            ahead.popleft()
        if not ahead:
            return at_once
        start, (stop, _) = ahead[0]
        return stop - first if start == first else min(rows, start - first)

    for batch in batches:
        held.append(batch)
        held_rows += batch.num_rows
        while held_rows >= size():
            joined, take = pa.concat_tables(held), size()
            yield first, joined.slice(0, take)
            first += take
            held, held_rows = [joined.slice(take)], held_rows - take
    if held_rows:
        yield first, pa.concat_tables(held)


def _ahead(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same, the next one read in a thread while this one is worked on: Arrow leaves Python's lock."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def _digest(table: TableFile, urls: list[str | None] | None, options: TableOptions) -> str:
    """Of the addresses; of pictures in a table, which are not read here, of the file's size."""
    total = hashlib.sha256(options.digest.encode())
    if urls is not None:
        total.update("\0".join([url or "" for url in urls]).encode())
    else:
        total.update(f"{table.size_bytes} {table.rows}".encode())
    return total.hexdigest()[:16]


def _has_addresses(table: TableFile, batch: pa.Table) -> bool:
    return "url" in batch.column_names and table.kind != "cell"


# rows

def _rows(table: TableFile, name: str, first: int, batch: pa.Table, texts: list[str | None] | None, options: TableOptions,
          seen: Seen) -> pa.Table:
    """The rows of `inputs` for a piece of a table."""
    count, place = batch.num_rows, to_position(table.key)
    nothing = pa.nulls(count, pa.string())
    empty = pa.array([""] * count, pa.string())

    def column(ours: str) -> pa.Array:
        found = batch.column(ours) if ours in batch.column_names else None
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else nothing

    urls = column("url")
    shown = _redacted(urls)
    page = _redacted(column("source_url"))
    said = pc.coalesce(page, shown, empty)
    is_cell = table.kind == "cell"
    data = {
        "source_id": _ids(name, table.key, first, first + count),
        "address": pa.array([table.store.url] * count, pa.string()),
        "position": pc.binary_join_element_wise(f"{place}#", pa.array(range(first, first + count), pa.int64()).cast(pa.string()), ""),
        "offset": pa.array(range(first, first + count), pa.int64()) if is_cell else pa.nulls(count, pa.int64()),
        "size_bytes": pa.array([_mean_bytes(table) if is_cell else 0] * count, pa.int64()),
        "licence": pc.coalesce(column("licence"), empty),
        "licence_url": pc.coalesce(column("licence_url"), empty),
        "attribution": pc.coalesce(column("attribution"), empty),
        "source_url": said,
        "caption_source": column("caption"),
        "attempt": pa.array([0] * count, pa.int32()),
        "kind": pa.array(["cell" if is_cell else "url"] * count, pa.string()),
        "url": pc.if_else(pc.equal(urls, said), pa.scalar(None, pa.string()), urls),
        "problem": pa.array(_problems(batch, texts, options.wanted, seen), pa.string()),
    }
    rows = pa.table([data[field.name] for field in SCHEMA], schema=SCHEMA)
    if table.kind != "record":
        return rows
    return rows.filter(pc.not_equal(pc.fill_null(batch.column("status"), ""), "success"))


def _mean_bytes(table: TableFile) -> int:
    return table.size_bytes // max(1, table.rows or 1)


def _ids(name: str, key: str, first: int, stop: int) -> pa.StringArray:
    """As inputs_table.source_id, for many rows."""
    begin = f"{name}\0{to_position(key)}#".encode()
    digits = b"".join([hashlib.sha256(b"%b%d" % (begin, row)).digest()[:16] for row in range(first, stop)]).hex()
    return pa.StringArray.from_buffers(stop - first, pa.py_buffer(np.arange(0, len(digits) + 1, 32, dtype=np.int32)),
                                       pa.py_buffer(digits.encode()))


def _redacted(urls: pa.Array) -> pa.Array:
    suspect = pc.fill_null(pc.match_substring_regex(urls, SUSPECT, ignore_case=True), False)
    if not pc.any(suspect).as_py():
        return urls
    return pa.array([redact(url) if mask else url for url, mask in zip(urls.to_pylist(), suspect.to_pylist())], pa.string())


def _problems(batch: pa.Table, urls: list[str | None] | None, wanted: Wanted, seen: Seen) -> list[str | None]:
    """What is wrong with each row, as `code` or `code: detail`; the first that holds."""
    problems: list[str | None] = [None] * batch.num_rows
    if wanted.licences:
        licences = [batch.column(name).to_pylist() if name in batch.column_names else [""] * batch.num_rows
                    for name in ("licence", "licence_url")]
        for row, (licence, url) in enumerate(zip(*licences)):
            problems[row] = wanted.licence_problem(licence or "", url or "")
    if wanted.min_short_side_px and {"width", "height"} <= set(batch.column_names):
        for row, (width, height) in enumerate(zip(batch.column("width").to_pylist(), batch.column("height").to_pylist())):
            if width is not None and height is not None and min(width, height) < wanted.min_short_side_px:
                problems[row] = problems[row] or f"told_too_small: {width} x {height}"
    if "status" in batch.column_names:
        for row, (status, message) in enumerate(zip(batch.column("status").to_pylist(), batch.column("error_message").to_pylist())):
            if status != "success":
                problems[row] = f"failed_upstream: {status}: {redact(message or '')[:200]}"
    if urls is not None:
        for row, (url, again) in enumerate(zip(urls, seen.repeated(urls).tolist())):
            problems[row] = "null_url" if url is None else problems[row] or ("duplicate_url" if again else None)
    return problems

