"""Named states of a dataset, what differs between two, and copies.

    tags/<name>.json                                created once: for each table the snapshot that was current, and why it was named
    rewritten/<table>/<version>/<shard>.<key>.json  the commit that a takedown put in the place of this one

A takedown reaches tagged states too: shards that it rewrote are read as they are now, and the tag says how many rows it has lost. A
state that was copied takes its tag along.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from infra.dataset import AlteredFile, Dataset, ShardRef, Snapshot
from infra.storage import StorageError, Store, read_json

TAGS = "tags"
REWRITTEN = "rewritten"
KEPT, ABSENT = "kept", "absent"
EXAMPLES = 5  # choice: ids that are shown of each change


class NoSuchTag(StorageError):
    """The dataset has no tag of this name."""


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """A state by its name. `lost` counts, by table, the rows that takedowns removed since it was named."""

    name: str
    made_at: str
    why: str
    tables: dict[str, Snapshot]
    lost: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What became of rows: (before, after) -> how many, with some of their ids. A side is "kept", a reason, or "absent"."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    same: int = 0

    def add(self, before: str, after: str, row_id: str) -> None:
        """Count a row that changed."""
        self.counts[before, after] += 1
        some = self.examples.setdefault((before, after), [])
        if len(some) < EXAMPLES:
            some.append(row_id)


# tags


def tag(dataset: Dataset, name: str, why: str = "") -> Tagged:
    """Name the current state. Raises ValueError if the name is taken or none, StorageError if nothing was published."""
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise ValueError(f"tag {name!r}: a name of letters, digits, '-', '_' and '.' is wanted")
    snapshots = {table: dataset.snapshot(table) for table in dataset.tables() if dataset.has(table)}
    if not snapshots:
        raise StorageError(f"{dataset.store.url} has no published table to be named")
    record = {
        "why": why,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "tables": {table: {**asdict(snapshot)} for table, snapshot in snapshots.items()},
    }
    if not dataset.store.create(_key(name), json.dumps(record, sort_keys=True).encode()):
        raise ValueError(f"tag {name!r} is there already, since {read(dataset, name).made_at}: a tag never moves, choose another name")
    return read(dataset, name)


def names(dataset: Dataset) -> list[str]:
    """Every tag, sorted."""
    return sorted(entry.key.split("/", 1)[1].removesuffix(".json") for entry in dataset.store.list(TAGS) if entry.key.endswith(".json"))


def read(dataset: Dataset, name: str) -> Tagged:
    """A tagged state as it can be read now. Raises NoSuchTag."""
    if not dataset.store.exists(_key(name)):
        known = ", ".join(names(dataset)) or "none"
        raise NoSuchTag(f"{dataset.store.url} has no tag {name!r}; there are: {known}")
    record = json.loads(dataset.store.read(_key(name)))
    tables, lost = {}, {}
    for table, plain in record["tables"].items():
        shards = {shard: ShardRef.from_json(ref) for shard, ref in plain["shards"].items()}
        named = Snapshot(table=table, version=plain["version"], config=plain["config"], shards=shards)
        tables[table] = _as_it_is_now(dataset, named)
        if rows := named.rows - tables[table].rows:
            lost[table] = rows
    return Tagged(name=name, made_at=record["made_at"], why=record["why"], tables=tables, lost=lost)


def _as_it_is_now(dataset: Dataset, named: Snapshot) -> Snapshot:
    """The shards of a snapshot; those whose commit a takedown removed, as that takedown rewrote them."""
    there = set(dataset.committed(named.table, named.version).values())
    stands = {shard: _stands(dataset, ref.commit_name, there) for shard, ref in named.shards.items()}
    changed = [name for shard, name in stands.items() if name and name != named.shards[shard].commit_name]
    rewritten = {ref.commit_name: ref for ref in dataset.load_commits(changed)} if changed else {}
    shards = {shard: rewritten.get(name, named.shards[shard]) for shard, name in stands.items() if name}
    return replace(named, shards=shards)


def _stands(dataset: Dataset, commit: str, there: set[str]) -> str:
    """The commit that stands for this one after takedowns; "" where they left nothing. AlteredFile if it is gone without a takedown."""
    while commit and commit not in there:
        if not dataset.store.exists(_rewritten(commit)):
            raise AlteredFile(f"{dataset.store.url}/{commit} is gone, though a tag names it: restore it from a copy")
        commit = read_json(dataset.store, _rewritten(commit))["by"]
    return commit


def note_rewritten(dataset: Dataset, old: ShardRef, new: ShardRef | None) -> None:
    """Keep for tags what a takedown made of a shard; None: nothing of it is left."""
    dataset.store.create(_rewritten(old.commit_name), json.dumps({"by": new.commit_name if new else ""}).encode())


def tagged_commits(dataset: Dataset) -> set[str]:
    """Names of the commits that tags stand for now; a tag that cannot be read stops no takedown."""
    found: set[str] = set()
    for name in names(dataset):
        with suppress(AlteredFile):
            found |= {ref.commit_name for one in read(dataset, name).tables.values() for ref in one.shards.values()}
    return found


def _rewritten(commit: str) -> str:
    return f"{REWRITTEN}/{commit.removeprefix('commits/')}"


def state(dataset: Dataset, table: str, which: str) -> Snapshot:
    """A table in a named state: a tag, a version, or "" for the current one."""
    if which and dataset.store.exists(_key(which)):
        tagged = read(dataset, which)
        if table not in tagged.tables:
            raise NoSuchTag(f"tag {which!r} has no table {table!r}; it has: {', '.join(tagged.tables)}")
        return tagged.tables[table]
    if which and which not in dataset.versions(table):
        known = ", ".join([*names(dataset), *dataset.versions(table)])
        raise NoSuchTag(f"{dataset.store.url}: {which!r} is neither a tag nor a version of table {table!r}; known: {known}")
    return dataset.snapshot(table, which or None)


def _key(name: str) -> str:
    return f"{TAGS}/{name}.json"


# differences


def diff(dataset: Dataset, before: Snapshot, after: Snapshot) -> Difference:
    """What became of the rows of one table between two states, shard by shard; shards of equal content are not read."""
    found = Difference()
    for shard in sorted(set(before.shards) | set(after.shards)):
        old, new = before.shards.get(shard), after.shards.get(shard)
        if old and new and old.digest == new.digest:
            found = replace(found, same=found.same + old.rows)
            continue
        fates = [_fates(dataset, ref) if ref else {} for ref in (old, new)]
        for row_id in sorted(fates[0].keys() | fates[1].keys()):
            sides = [fate.get(row_id, ABSENT) for fate in fates]
            if sides[0] == sides[1]:
                found = replace(found, same=found.same + 1)
            else:
                found.add(sides[0], sides[1], row_id)
    return found


def _fates(dataset: Dataset, ref: ShardRef) -> dict[str, str]:
    """Row id -> "kept", or the reason for which it was not."""
    rows = dataset.read(ref)
    name = "source_id" if "source_id" in rows.column_names else "image_id"
    fates = {outcome.row_id: outcome.reason for outcome in dataset.outcomes(ref)}
    accepted = rows.column("accepted").to_pylist() if "accepted" in rows.column_names else [True] * rows.num_rows
    ids = rows.column(name).to_pylist()
    return fates | {row_id: KEPT for row_id, good in zip(ids, accepted, strict=True) if good}


# copies


def copy(source: Dataset, target: Dataset, tables: dict[str, Snapshot], tagged: str = "") -> Iterator[tuple[int, int, int]]:
    """Copy these tables with their commits, the list of takedowns, and the tag; yields (shards done, shards in all, bytes) as it goes.

    Files keep their names and bytes, so that digests, tags and readers agree on both sides. Killed on the way, the same call goes on:
    a commit is created after its files are there, snapshots are published at the end. What the target itself took down comes along
    once more: take it down again (infra/gc.py). Raises ValueError if the target has another state under the name of the tag.
    """
    record = source.store.read(_key(tagged)) if tagged else b""
    if tagged and target.store.exists(_key(tagged)) and target.store.read(_key(tagged)) != record:
        raise ValueError(f"{target.store.url} has a tag {tagged!r} that names another state: a tag never moves, copy to another address")
    for entry in [*source.store.list("takedowns"), *(source.store.list(REWRITTEN) if tagged else ())]:
        if entry.key.endswith(".json"):
            target.store.create(entry.key, source.store.read(entry.key))
    refs = [ref for snapshot in tables.values() for ref in snapshot.shards.values()]
    there = {entry.key for entry in target.store.list("commits")}
    total_bytes = 0
    for done, ref in enumerate(refs, start=1):
        if ref.commit_name not in there:
            total_bytes += _copy_shard(source, target.store, ref)
        yield done, len(refs), total_bytes
    for snapshot in tables.values():
        target.publish(snapshot.table, snapshot.version, snapshot.shards.values(), snapshot.config)
    if tagged:
        target.store.create(_key(tagged), record)


def _copy_shard(source: Dataset, target: Store, ref: ShardRef) -> int:
    data = source.store.read(ref.path)
    found = hashlib.sha256(data).hexdigest()
    if found != ref.sha256:
        expected = f"sha256 {found[:16]}…, expected {ref.sha256[:16]}…"
        raise AlteredFile(f"{source.store.url}/{ref.path} is not what its commit says ({expected}): not copied")
    size_bytes = _put_anew(target, ref.path, data)
    if ref.outcomes_path:
        size_bytes += _put_anew(target, ref.outcomes_path, source.store.read(ref.outcomes_path))
    for tar in tars_of(source, ref):
        size_bytes += _put_anew(target, tar, source.store.read(tar))
    target.create(ref.commit_name, source.store.read(ref.commit_name))
    return size_bytes


def _put_anew(target: Store, key: str, data: bytes) -> int:
    """No commit names the file yet: what stands there was cut off by a kill."""
    target.delete(key)
    target.put(key, data)
    return len(data)


def tars_of(dataset: Dataset, ref: ShardRef) -> list[str]:
    """The tars that one shard of an exports table names; none for other tables, or when its file is gone (another sweep's work)."""
    if ref.table != "exports" or not dataset.store.exists(ref.path):
        return []
    return sorted(set(dataset.read(ref, ["tar"]).column("tar").to_pylist()))


def describe(difference: Difference) -> list[str]:
    """The difference in lines, the largest change first."""
    lines = [f"{difference.same} rows are the same"]
    for (before, after), count in sorted(difference.counts.items(), key=lambda pair: (-pair[1], pair[0])):
        shown: Any = ", ".join(difference.examples[before, after])
        lines.append(f"{count:>8}  {before} -> {after}   e.g. {shown}")
    return lines
