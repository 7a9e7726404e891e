"""The inputs table: one row per thing asked for. The driver of `ingest` writes it, shard after shard, before anything is fetched.

The shard n is committed under the ordinal n and a constant key, so exactly one writer can decide what it holds. A driver that was
killed goes on with the first ordinal that is free; of two drivers, the one that is refused lists again and goes on behind the winner. So
a source is never lost and stands in one shard.

Retries: a source whose fetch failed may be asked for again (`retry_failed`). Its row is then repeated in a new shard with the next
`attempt`; **the outcome in the last shard that holds a source_id is the one that counts**. Only failed sources are repeated, so the
images table still holds each source once.

Of files and tars the driver keeps the ids that it knows in memory: about 100 bytes a source, 2 GB for 20 million; of a prefix on S3
it sorts the keys: 270 bytes an object. Of tables it keeps 8 bytes a row (pipelines/table_shards.py).
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from infra.dataset import Dataset, ShardRef, Snapshot
from infra.digest import content_digest
from infra.gc import TAKEN_DOWN
from infra.ledger import Ledger
from pipelines.sources import Item, Source

TABLE = VERSION = KEY = "inputs"
STAGE_VERSION = 1
SCHEMA = pa.schema([
    ("source_id", pa.string()), ("address", pa.string()), ("position", pa.string()), ("offset", pa.int64()), ("size_bytes", pa.int64()),
    ("licence", pa.string()), ("licence_url", pa.string()), ("attribution", pa.string()), ("source_url", pa.string()),
    ("caption_source", pa.string()), ("attempt", pa.int32()), ("kind", pa.string()), ("url", pa.string()), ("problem", pa.string()),
])
COMMITTERS = 16  # measured: a shard waits four times for the disk; with 8 threads a million rows take a fifth longer
MENDABLE = "failed_upstream"  # a problem that asking ourselves may mend
Row = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class ShardLimits:
    """How large a shard may become: whichever limit comes first closes it."""

    size_bytes: int = 256 * 2**20  # docs/data.md: shards hold about 256 MB
    rows: int = 10_000  # choice: small pictures do not make a shard that one worker holds for an hour

    def __post_init__(self) -> None:
        if self.size_bytes < 1 or self.rows < 1:
            raise ValueError(f"a shard of {self.size_bytes} bytes and {self.rows} rows holds nothing: both must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is not asked for at all, by what the source says. Decided when a row is listed: what was listed stays as it was."""

    licences: tuple[str, ...] = ()  # names or addresses; empty: any. Compared without case, http(s):// and a slash at the end
    min_short_side_px: int = 0  # of tables that tell the size

    def licence_problem(self, licence: str, licence_url: str) -> str | None:
        """The problem of a row under that licence, or None."""
        if not self.licences or {_plain(licence), _plain(licence_url)} & {_plain(one) for one in self.licences}:
            return None
        return f"licence: {licence or licence_url or 'none told'}"


@dataclass(frozen=True)
class Piece:
    """Rows of one shard; of tables also which rows they cover ("table#first-stop" -> digest of those), and their content digest."""

    rows: pa.Table
    covers: dict[str, str] = field(default_factory=dict)
    digest: str = ""


def _plain(licence: str) -> str:
    return licence.strip().lower().removeprefix("https://").removeprefix("http://").rstrip("/") or "-"


def source_id(name: str, position: str) -> str:
    """32 hex digits that name a position in a source."""
    return hashlib.sha256(f"{name}\0{position}".encode()).hexdigest()[:32]


def to_row(item: Item, address: str, name: str, wanted: Wanted | None = None) -> Row:
    """An item of a source as a row."""
    told = item.provenance
    place: Row = {"source_id": source_id(name, item.position), "address": address, "position": item.position,
                  "offset": item.offset, "size_bytes": item.size_bytes, "attempt": 0, "kind": "file" if item.offset is None else "member",
                  "problem": item.problem or (wanted.licence_problem(told.licence, told.licence_url) if wanted else None)}
    return place | asdict(told)


def group(rows: Iterable[Row], limits: ShardLimits) -> Iterator[list[Row]]:
    """Rows in their order, cut into shards: a row that would overfill a shard begins the next one."""
    shard: list[Row] = []
    size_bytes = 0
    for row in rows:
        row_bytes = int(str(row["size_bytes"]))
        if shard and (len(shard) >= limits.rows or size_bytes + row_bytes > limits.size_bytes):
            yield shard
            shard, size_bytes = [], 0
        shard.append(row)
        size_bytes += row_bytes
    if shard:
        yield shard


def new_rows(dataset: Dataset, source: Source, name: str = "", wanted: Wanted | None = None) -> Iterator[Row]:
    """Rows for what is in the source and not in the table yet, in the order of the source. Raises ValueError for an empty source."""
    known = {one for ref in committed(dataset) for one in source_ids(dataset, ref)}
    found = 0
    address = source.address
    for item in source.items():
        found += 1
        row = to_row(item, address, name or address, wanted)
        if row["source_id"] not in known:
            yield row
    if not found and not source.tables:
        others = ", ".join(f"{count} {suffix}" for suffix, count in sorted(source.skipped.items()))
        raise ValueError(f"{source.url} holds no file with the suffix of an image{others and f' ({others})'}: give --input a folder, a "
                         "prefix or a tar that does; CSV, TSV and text files in it are taken for lists of URLs with --set lists=true")


def failed_rows(dataset: Dataset, images: Snapshot) -> Iterator[Row]:
    """The rows to ask for again: sources whose newest attempt was fetched and failed, but for what a retry cannot mend (`problem`)."""
    refs = {ref.shard: ref for ref in committed(dataset)}
    failed = {shard: {outcome.row_id for outcome in dataset.outcomes(ref) if outcome.status == "failed"}
              for shard, ref in images.shards.items()}
    ids = pa.array(sorted(set().union(*failed.values())), pa.string())
    newest: dict[str, str] = {}
    for shard, ref in refs.items() if len(ids) else ():
        here = dataset.read(ref, ["source_id"]).column("source_id")
        newest.update(dict.fromkeys(pc.filter(here, pc.is_in(here, value_set=ids)).to_pylist(), shard))
    for shard in images.shards:
        for row in dataset.read(refs[shard]).to_pylist() if failed[shard] else []:
            problem = row.get("problem") or ""
            if row["source_id"] in failed[shard] and newest[row["source_id"]] == shard and (not problem or problem.startswith(MENDABLE)):
                yield row | {"attempt": row["attempt"] + 1, "problem": None} | (_on_the_web(row) if problem else {})


def _on_the_web(row: Row) -> Row:
    """What changes when a picture that a table lacks is asked for where it came from."""
    return {"kind": "url", "offset": None, "size_bytes": 0} if row["kind"] == "cell" and row["source_url"] else {}


def append(dataset: Dataset, shards: Iterable[list[Row]]) -> bool:
    """Commit shards behind the last one; False when another writer took an ordinal first (list again, then go on)."""
    return append_tables(dataset, (Piece(pa.Table.from_pylist(rows, schema=SCHEMA)) for rows in shards))


def append_tables(dataset: Dataset, pieces: Iterable[Piece]) -> bool:
    """The same for rows that are tables already. Several commits are on their way at a time, each its own ordinal."""
    taken = {shard for shard, _ in dataset.committed(TABLE, VERSION)}
    free = (shard for shard in (f"{n:05d}" for n in itertools.count()) if shard not in taken)
    waiting: deque[Future[bool]] = deque()
    ours = True
    with ThreadPoolExecutor(COMMITTERS) as pool:
        for piece in pieces:
            waiting.append(pool.submit(_commit, dataset, next(free), piece))
            if len(waiting) > COMMITTERS or waiting[0].done():
                ours = waiting.popleft().result() and ours
            if not ours:
                break
        return all([ours, *(future.result() for future in waiting)])


def _commit(dataset: Dataset, shard: str, piece: Piece) -> bool:
    """Whether what stands under this ordinal now are these rows."""
    count, digest = piece.rows.num_rows, piece.digest or content_digest(piece.rows)
    ref = dataset.commit(table=TABLE, version=VERSION, shard=shard, key=KEY, data=piece.rows, outcomes=[], ledger=Ledger(count, count),
                         inputs=piece.covers, stage_version=STAGE_VERSION, digest=digest)
    return ref.inputs == piece.covers and ref.digest == digest


def taken_down_by_shard(dataset: Dataset) -> Callable[[str], dict[str, list[str]]]:
    """The parameters of fetching a shard: its sources that were taken down, if any, so that only their shards are done again.

    infra.gc commits a rewritten shard under the key that these parameters give, so nothing has to be fetched once more.
    """
    taken_down = dataset.takedowns()
    refs = {ref.shard: ref for ref in committed(dataset)}

    def params(shard: str) -> dict[str, list[str]]:
        here = sorted(taken_down.intersection(source_ids(dataset, refs[shard]))) if taken_down else []
        return {TAKEN_DOWN: here} if here else {}

    return params


def publish(dataset: Dataset) -> Snapshot:
    """Publish all committed shards; once more if another writer committed meanwhile."""
    while True:
        refs = committed(dataset)
        snapshot = dataset.publish(TABLE, VERSION, refs, {})
        if len(committed_names(dataset)) == len(refs):
            return snapshot


def committed(dataset: Dataset) -> list[ShardRef]:
    """The shards that stand, in their order."""
    return dataset.load_commits(committed_names(dataset))


def committed_names(dataset: Dataset) -> list[str]:
    """The names of their commits."""
    return [name for _, name in sorted(dataset.committed(TABLE, VERSION).items())]


def source_ids(dataset: Dataset, ref: ShardRef) -> list[str]:
    """The sources of one shard."""
    return [str(one) for one in dataset.read(ref, ["source_id"]).column("source_id").to_pylist()]
