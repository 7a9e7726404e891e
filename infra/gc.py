"""Removing what must not or need not stay: bytes that were taken down, and files that no commit names.

Both are safe beside running jobs. A file is swept only when it is older than the grace period and no commit names it (files are listed
before commits are read, so what is committed meanwhile is seen). A takedown makes a new commit before it removes the old one; a
job that is reading the old file at that moment stops with a message, and the same command continues.

A takedown of a picture reaches every source that gave the same bytes, and of a derived picture (a negative sample) its parent counts.
The address of a picture, of its page or of its file (infra/picture_addresses.py) stands for whatever came from there, and for what is
listed later.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.dataset import Dataset, ShardRef, Snapshot, hash_config
from infra.ledger import Ledger, Outcome
from infra.picture_addresses import ADDRESS_COLUMNS, addresses_of, came_from, comparable, is_address
from infra.storage import TEMPORARY, Entry, NotFound
from infra.versions import note_rewritten, tagged_commits, tars_of

GRACE = timedelta(hours=24)  # choice: longer than any shard takes from its first file to its commit
DATA_FILE = re.compile(r"[^/]+/[^/]+\.[0-9a-f]{16}(\.outcomes)?\.(parquet|tar)")  # what Dataset.commit and the export stage write
MARKER = re.compile(r"attempts/.+\.json")
UNFINISHED = re.compile(r"(.*/)?\.[^/]+" + re.escape(TEMPORARY))  # what Store.create leaves behind when it is killed
ID_COLUMNS = ("image_id", "source_id", "parent_image_id")
TAKEN_DOWN = "taken_down"


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A committed shard that holds bytes, or failed rows, that were taken down."""

    ref: ShardRef
    versions: tuple[str, ...]  # versions of the table whose published shards it belongs to; none: it was superseded
    tagged: bool  # whether a tag stands for it
    modified: datetime  # of the commit


# files that no commit names

def rubbish(dataset: Dataset, grace: timedelta = GRACE) -> list[Entry]:
    """Data files without a commit, markers and unfinished files, older than the grace period; foreign files are never among them."""
    oldest_kept = datetime.now(UTC) - grace
    old = [entry for entry in dataset.store.list() if entry.modified <= oldest_kept and _ours(entry.key)]
    named = named_files(dataset)  # after the listing: what was committed meanwhile is named
    return [entry for entry in old if entry.key not in named]


def named_files(dataset: Dataset) -> set[str]:
    """Every file that a commit names, and the tars that exports name."""
    named: set[str] = set()
    for ref, _ in commits(dataset):
        named |= {ref.path, *filter(None, [ref.outcomes_path]), *tars_of(dataset, ref)}
    return named


def commits(dataset: Dataset) -> Iterator[tuple[ShardRef, datetime]]:
    """Every commit of every version, and when it was made."""
    entries = [e for e in dataset.store.list("commits") if e.key.endswith(".json") and e.key.split("/")[2] != "current"]
    yield from zip(dataset.load_commits([entry.key for entry in entries]), [entry.modified for entry in entries], strict=True)


def _ours(key: str) -> bool:
    return any(pattern.fullmatch(key) for pattern in (DATA_FILE, MARKER, UNFINISHED))


# takedowns

def take_down(dataset: Dataset, asked: frozenset[str], why: str, *, grace: timedelta = GRACE, dry_run: bool = False) -> list[Hit]:
    """Put these ids, and all that they reach, on the dataset's list, and remove the bytes; returns the shards that held them."""
    if not asked:
        return []
    ids = reach(dataset, asked)
    missing = ids - dataset.takedowns()
    if missing and not dry_run:
        dataset.add_takedown(missing, why)
    found = hits(dataset, ids, grace)
    if found and not dry_run:
        remove(dataset, found, ids)
    return found


def reach(dataset: Dataset, ids: frozenset[str]) -> frozenset[str]:
    """The ids and addresses, and the ids of every image and source that came from there or shares a picture with them."""
    found = ids | from_addresses(dataset, frozenset(one for one in ids if is_address(one)))
    while True:
        before = len(found)
        for ref, _ in commits(dataset):
            rows = _columns(dataset, ref, ("image_id", "source_id")) if ref.table == "images" else None
            for row in rows.filter(_matches(rows, found)).to_pylist() if rows is not None else ():
                found |= set(row.values())
        if len(found) == before:
            return found


def from_addresses(dataset: Dataset, addresses: frozenset[str]) -> frozenset[str]:
    """The sources that have one of these addresses, fetched or only listed."""
    found: set[str] = set()
    for ref, _ in commits(dataset) if addresses else ():
        rows = _columns(dataset, ref, ("source_id", *ADDRESS_COLUMNS)) if ref.table in ("images", "inputs") else None
        if rows is not None:
            found |= set(rows.filter(came_from(rows, addresses)).column("source_id").to_pylist())
    return frozenset(found)


def known(dataset: Dataset, asked: frozenset[str]) -> frozenset[str]:
    """Those of the ids and addresses that some row of a table has."""
    ids, addresses = (frozenset(one for one in asked if is_address(one) == is_one) for is_one in (False, True))
    found: set[str] = set()
    for ref, _ in commits(dataset) if asked else ():
        rows = _columns(dataset, ref, dict.fromkeys((*ID_COLUMNS, *ADDRESS_COLUMNS)))
        if rows is None:
            continue
        for name in ID_COLUMNS:
            found |= ids.intersection(rows.column(name).to_pylist()) if name in rows.column_names else set()
        if addresses:
            there = addresses_of(rows.filter(came_from(rows, addresses)))
            found |= {one for one in addresses if comparable(one) in there}
    return frozenset(found)


def hits(dataset: Dataset, ids: frozenset[str], grace: timedelta = GRACE) -> list[Hit]:
    """The shards to rewrite. Commits that nothing published yet are left alone for the grace period: a job may be about to."""
    oldest_kept = datetime.now(UTC) - grace
    published: dict[str, list[str]] = defaultdict(list)
    for table in dataset.tables():
        for version in dataset.versions(table):
            for ref in dataset.snapshot(table, version).shards.values():
                published[ref.commit_name].append(version)
    tagged = tagged_commits(dataset)
    found = [Hit(ref=ref, versions=tuple(published[ref.commit_name]), tagged=ref.commit_name in tagged, modified=modified)
             for ref, modified in commits(dataset) if _holds(dataset, ref, ids)]
    return [hit for hit in found if hit.versions or hit.tagged or hit.modified <= oldest_kept]


def _holds(dataset: Dataset, ref: ShardRef, ids: frozenset[str]) -> bool:
    rows = _columns(dataset, ref, ID_COLUMNS) if _has_bytes(dataset, ref) else None
    if rows is None:
        return False
    fresh = ref.table == "images" and any(o.row_id in ids and o.reason != TAKEN_DOWN for o in dataset.outcomes(ref))
    return fresh or bool(pc.any(_matches(rows, ids)).as_py())


def remove(dataset: Dataset, found: list[Hit], ids: frozenset[str]) -> None:
    """Commit the shards without these rows, publish, and only then delete the old commits and files."""
    for table in sorted({hit.ref.table for hit in found}):
        here = [hit for hit in found if hit.ref.table == table and (hit.versions or hit.tagged)]
        replaced = {hit.ref.commit_name: _without(dataset, hit, ids) for hit in here}
        current = dataset.snapshot(table).version if dataset.has(table) else ""
        for version in sorted(dataset.versions(table), key=lambda one: one == current):  # the current one last, so that it stays current
            _publish(dataset, dataset.snapshot(table, version), replaced)
        for hit in here:
            note_rewritten(dataset, hit.ref, replaced[hit.ref.commit_name])
    for hit in found:
        files = [hit.ref.path, *filter(None, [hit.ref.outcomes_path]), *tars_of(dataset, hit.ref)]
        for name in (hit.ref.commit_name, *files):
            dataset.store.delete(name)


def _without(dataset: Dataset, hit: Hit, ids: frozenset[str]) -> ShardRef | None:
    """The shard without these rows, under the key that a job plans for it when it knows of the takedown (under one of its own where a
    tag alone stands for it); no shard for a tar."""
    ref = hit.ref
    if ref.table == "exports":
        return None
    rows = dataset.read(ref)
    mask = _matches(rows, ids)
    name = "source_id" if "source_id" in rows.column_names else "image_id"
    gone = rows.filter(mask).column(name).to_pylist()
    before = dataset.outcomes(ref)
    failed = [o.row_id for o in before if o.row_id in ids or o.reason == TAKEN_DOWN]
    taken_down = sorted({*gone, *failed})
    outcomes = [o for o in before if o.row_id not in taken_down] + [Outcome(one, "rejected", TAKEN_DOWN) for one in taken_down]
    kept = rows.filter(pc.invert(mask))
    key = hash_config([ref.version, ref.inputs, {TAKEN_DOWN: taken_down}, *([] if hit.versions else [ref.key])])
    return dataset.commit(table=ref.table, version=ref.version, shard=ref.shard, key=key, data=kept, outcomes=outcomes,
                          ledger=Ledger.of(ref.ledger.total, kept.num_rows, outcomes), inputs=ref.inputs, stage_version=ref.stage_version)


def _publish(dataset: Dataset, snapshot: Snapshot, replaced: dict[str, ShardRef | None]) -> None:
    refs = [replaced.get(ref.commit_name, ref) for ref in snapshot.shards.values()]
    dataset.publish(snapshot.table, snapshot.version, [ref for ref in refs if ref is not None], snapshot.config)


# reading what is needed, and no bytes of pictures

def _columns(dataset: Dataset, ref: ShardRef, names: Iterable[str]) -> pa.Table | None:
    """Those of the columns that the shard has; None when it has none of them, or its file is gone (another sweep's work)."""
    try:
        with dataset.store.open(ref.path) as file:
            parquet = pq.ParquetFile(file)
            there = [name for name in names if name in parquet.schema_arrow.names]
            return parquet.read(columns=there, use_threads=False) if there else None
    except NotFound:
        return None


def _has_bytes(dataset: Dataset, ref: ShardRef) -> bool:
    try:
        with dataset.store.open(ref.path) as file:
            return ref.table == "exports" or any(pa.types.is_binary(f.type) for f in pq.ParquetFile(file).schema_arrow)
    except NotFound:
        return False


def _matches(rows: pa.Table, ids: Iterable[str], names: Iterable[str] = ID_COLUMNS) -> pa.Array:
    wanted = pa.array(sorted(ids), pa.string())
    mask = pa.array([False] * rows.num_rows, pa.bool_())
    for name in names:
        if name in rows.column_names:
            mask = pc.or_(mask, pc.is_in(rows.column(name).combine_chunks(), value_set=wanted))
    return mask
