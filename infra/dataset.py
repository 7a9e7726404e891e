"""The data contract: a dataset is a folder of tables split into the same shards, and readers trust commits only.

    <table>/<shard>.<attempt>.parquet                 data files: attempt-unique names, never renamed, never overwritten
    <table>/<shard>.<attempt>.outcomes.parquet        the rows of that shard that were rejected or failed, with the reason
    commits/<table>/<version>/<shard>.<key>.json      created once; names the files, their hashes, the ledger and the inputs
    commits/<table>/current/<n>.json                  created once; the n-th snapshot of the table, the last one is current
    takedowns/<name>.json                             ids that must not leave the dataset any more

docs/data.md describes the columns; tests/laws hold the laws.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import reduce
from operator import add
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from infra.digest import content_digest
from infra.ledger import Ledger, Outcome
from infra.local_store import LocalStore
from infra.shard_file import RowGroups, encode, write_hashed
from infra.storage import NotFound, StorageError, read_json, unique_name
from infra.stores import open_store

READERS = 16  # choice: commits are small objects, latency hides behind threads


class NoSuchTable(StorageError):
    """The dataset has no published snapshot of this table."""


class AlteredFile(StorageError):
    """A data file is not what its commit says."""


@dataclass(frozen=True, kw_only=True)
class ShardRef:
    """One committed shard of one version of a table."""

    table: str
    version: str
    shard: str
    key: str  # hash of the stage, its configuration and the digests of its inputs
    path: str
    rows: int
    sha256: str  # of the data file's bytes
    digest: str  # of the row values without volatile columns
    outcomes_path: str | None
    ledger: Ledger
    inputs: dict[str, str]  # table -> digest of the shard that was read
    attempt: str
    stage_version: int
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def commit_name(self) -> str:
        """The key of the commit in the store."""
        return commit_name(self.table, self.version, self.shard, self.key)

    @staticmethod
    def from_json(data: dict[str, Any]) -> ShardRef:
        """The inverse of `dataclasses.asdict`. StorageError for a commit that another version of this software wrote."""
        names = {one.name for one in fields(ShardRef)}
        wrong = sorted({*data} ^ names)
        if wrong:
            raise StorageError(
                f"a commit of another schema version ({', '.join(wrong)} of {data.get('table')} {data.get('shard')} missing or unknown): "
                "read it with the version that wrote it, or make the dataset anew"
            )
        return ShardRef(**{**data, "ledger": Ledger.from_json(data["ledger"])})


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a table is at one moment: a version and its shards, sorted by name."""

    table: str
    version: str
    config: dict[str, Any]
    shards: dict[str, ShardRef]

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(ref.rows for ref in self.shards.values())

    @property
    def ledger(self) -> Ledger:
        """The shards' ledgers, added."""
        return reduce(add, (ref.ledger for ref in self.shards.values()), Ledger())

    @property
    def digest(self) -> str:
        """One digest over the content of all shards: equal snapshots hold equal rows in equal order."""
        return hash_config({shard: ref.digest for shard, ref in self.shards.items()})


def commit_name(table: str, version: str, shard: str, key: str) -> str:
    """Where the commit of one shard lives."""
    return f"commits/{table}/{version}/{shard}.{key}.json"


def hash_config(value: Any) -> str:
    """A short stable hash (16 hex digits) of any JSON-able value; dictionaries are sorted by key."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


class Dataset:
    """A folder of tables at any address that `open_store` takes."""

    def __init__(self, url: str) -> None:
        self.store = open_store(url)
        self._verified: set[str] = set()
        self._reached = False

    def __reduce__(self) -> tuple[type[Dataset], tuple[str]]:
        return Dataset, (self.store.url,)

    # reading

    def tables(self) -> list[str]:
        """Names of the tables that have at least one commit."""
        return sorted({entry.key.split("/")[1] for entry in self.store.list("commits")})

    def has(self, table: str) -> bool:
        """Whether the table has a published snapshot."""
        return bool(self._snapshot_names(table))

    def snapshot(self, table: str, version: str | None = None) -> Snapshot:
        """The current snapshot, or the latest one of a given version. Raises NoSuchTable."""
        for name in reversed(self._snapshot_names(table)):
            data = read_json(self.store, name)
            if version in (None, data["version"]):
                shards = {shard: ShardRef.from_json(ref) for shard, ref in data["shards"].items()}
                return Snapshot(table=table, version=data["version"], config=data["config"], shards=shards)
        wanted = f"version {version} of table {table!r}" if version else f"table {table!r}"
        found = ", ".join(self.tables()) or "no table at all"
        raise NoSuchTable(f"{self.store.url} has no published {wanted}; found: {found}. Run the job that writes it first")

    def versions(self, table: str) -> list[str]:
        """Every version that was ever published, oldest first."""
        published = [read_json(self.store, name)["version"] for name in self._snapshot_names(table)]
        return list(dict.fromkeys(published))

    def read(self, ref: ShardRef, columns: list[str] | None = None) -> pa.Table:
        """The rows of one committed shard. Raises AlteredFile if the file is not what the commit says."""
        if ref.path not in self._verified:
            data = self._read_committed(ref)
            self._verified.add(ref.path)
            return _decode(pa.BufferReader(data), columns)  # without a copy in Python
        with self.store.open(ref.path) as file:
            return _decode(file, columns)

    def outcomes(self, ref: ShardRef) -> list[Outcome]:
        """The rejected and failed rows of one committed shard."""
        if ref.outcomes_path is None:
            return []
        rows = _decode(pa.BufferReader(self.store.read(ref.outcomes_path))).to_pylist()
        return [Outcome(**row) for row in rows]

    def committed(self, table: str, version: str) -> dict[tuple[str, str], str]:
        """(shard, key) -> name of the commit, for every commit of a version."""
        return {_shard_and_key(name): name for name in self._records(f"commits/{table}/{version}")}

    def load_commits(self, names: Iterable[str]) -> list[ShardRef]:
        """Read commits, many at a time, in the order given."""
        names = list(names)
        if len(names) == 1:  # a pool of threads takes longer to start than one file to read
            return [self._load_commit(names[0])]
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self._load_commit, names))

    def _load_commit(self, name: str) -> ShardRef:
        try:
            return ShardRef.from_json(read_json(self.store, name))
        except NotFound as error:
            raise NotFound(f"{error}, though a table or a run names it: restore it from a copy, or run the job that writes the table "
                           "again") from error

    # writing

    def commit(self, *, table: str, version: str, shard: str, key: str, data: pa.Table | RowGroups, outcomes: list[Outcome],
               ledger: Ledger, inputs: dict[str, str], stage_version: int, timings: dict[str, float] | None = None,
               sha256_of: Mapping[str, str] | None = None, digest: str | None = None) -> ShardRef:
        """Write a shard and commit it, once. `sha256_of`: see `content_digest`; `digest`: that of `data`, where it is known.

        Returns the commit that stands: ours, or that of another writer who was first with the same key; then our files are removed.
        """
        ledger.check()
        groups = data if isinstance(data, RowGroups) else RowGroups(data)
        rows, digest = groups.num_rows, digest or content_digest(groups.whole(), sha256_of=sha256_of)
        path = unique_name(f"{table}/{shard}", ".parquet")
        file_sha256 = self._write(path, groups)
        outcomes_path = self._put_outcomes(path, outcomes)
        ref = ShardRef(table=table, version=version, shard=shard, key=key, path=path, rows=rows,
                       sha256=file_sha256, digest=digest, outcomes_path=outcomes_path,
                       ledger=ledger, inputs=inputs, attempt=uuid.uuid4().hex, stage_version=stage_version, timings=timings or {})
        if self.store.create(ref.commit_name, _to_json(asdict(ref))):
            return ref
        for ours in filter(None, (path, outcomes_path)):
            self.store.delete(ours)
        return self.load_commits([ref.commit_name])[0]

    def publish(self, table: str, version: str, refs: Iterable[ShardRef], config: dict[str, Any]) -> Snapshot:
        """Make these shards the current snapshot of the table; does nothing if they are already."""
        shards = {ref.shard: ref for ref in sorted(refs, key=lambda ref: ref.shard)}
        snapshot = Snapshot(table=table, version=version, config=config, shards=shards)
        data = _to_json({"version": version, "config": config, "attempt": uuid.uuid4().hex,
                         "shards": {shard: asdict(ref) for shard, ref in shards.items()}})
        while True:
            names = self._snapshot_names(table)
            if names and self.snapshot(table) == snapshot:
                return snapshot
            number = int(names[-1].rsplit("/", 1)[1].removesuffix(".json")) + 1 if names else 0
            if self.store.create(f"commits/{table}/current/{number:08d}.json", data):
                return snapshot

    # takedown

    def takedowns(self) -> frozenset[str]:
        """Image ids and source ids that must not leave the dataset."""
        return frozenset(one for listed in self.takedown_lists() for one in listed["ids"])

    def takedown_lists(self) -> list[dict[str, Any]]:
        """Each list with its `ids` (and addresses), `why`, and `made_at` (UTC), the oldest first."""
        lists = [read_json(self.store, name) for name in self._records("takedowns")]
        return sorted(lists, key=lambda listed: listed.get("made_at", ""))

    def add_takedown(self, ids: Iterable[str], why: str) -> None:
        """Exclude ids from every later selection, export and training batch; `gc` removes their bytes."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        listed = {"ids": sorted(ids), "why": why, "made_at": now}
        self.store.create(unique_name("takedowns/list", ".json"), _to_json(listed))  # whole or absent

    # inside

    def _snapshot_names(self, table: str) -> list[str]:
        if not self._reached:  # a wrong address is told at once; later a server that is away is waited for
            self.store.check()
            self._reached = True
        return self._records(f"commits/{table}/current")

    def _records(self, folder: str) -> list[str]:
        """Keys of what `create` finished there; what a killed writer left behind has another suffix."""
        return [entry.key for entry in self.store.list(folder) if entry.key.endswith(".json")]

    def _read_committed(self, ref: ShardRef) -> bytes | pa.Buffer:
        remedy = f"restore it from a copy, or delete {ref.commit_name} and run the job that writes {ref.table!r} again"
        try:
            data = self._read_whole(ref.path)
        except NotFound as error:
            raise AlteredFile(f"{self.store.url}/{ref.path} is missing, but a commit names it: {remedy}") from error
        found = hashlib.sha256(data).hexdigest()
        if found != ref.sha256:
            raise AlteredFile(f"{self.store.url}/{ref.path} was altered after its commit: sha256 {found[:16]}… found, "
                              f"{ref.sha256[:16]}… expected; {remedy}")
        return data

    def _read_whole(self, path: str) -> bytes | pa.Buffer:
        """A file; of a local disk in Arrow's memory, which is used again (measured: a third of the time, as no page comes fresh)."""
        if not isinstance(self.store, LocalStore):
            return self.store.read(path)
        with self.store.open(path) as file:
            data = pa.allocate_buffer(self.store.size(path))
            file.readinto(memoryview(data))  # type: ignore[attr-defined]  # what falls short or was altered has another sha256
        return data

    def _put_outcomes(self, path: str, outcomes: list[Outcome]) -> str | None:
        if not outcomes:
            return None
        name = path.removesuffix(".parquet") + ".outcomes.parquet"
        self._write(name, RowGroups(pa.Table.from_pylist([asdict(outcome) for outcome in outcomes])))
        return name

    def _write(self, path: str, groups: RowGroups) -> str:
        """Write a table and return the sha256 of the file. Pictures go straight into the file: no second copy of them in memory."""
        if not isinstance(self.store, LocalStore):
            groups.keep()  # a server that is away is asked again
        if not groups.binary:  # small: a thread would cost more than it saves
            data = io.BytesIO()
            encode(groups, data)
            self.store.put(path, data.getvalue())
            return hashlib.sha256(data.getvalue()).hexdigest()
        return self.store.write(path, lambda file: write_hashed(groups, file))


def _decode(file: BinaryIO | pa.BufferReader, columns: list[str] | None = None) -> pa.Table:
    # measured: with Arrow's threads (`read_table`) one process in fifty aborts at its exit; shards are read in parallel by workers
    return pq.ParquetFile(file).read(columns=columns, use_threads=False)


def _to_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode()


def _shard_and_key(name: str) -> tuple[str, str]:
    shard, key = name.rsplit("/", 1)[1].removesuffix(".json").rsplit(".", 1)
    return shard, key
