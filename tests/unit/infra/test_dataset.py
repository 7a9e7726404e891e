"""The data contract on a local folder: commits, snapshots, altered files, takedowns."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest

from infra.dataset import AlteredFile, Dataset, NoSuchTable, ShardRef, Snapshot, hash_config
from infra.ledger import Ledger, Outcome
from infra.local_store import LocalStore
from infra.storage import StorageError
from tests.helpers import commit_table, images_dataset, photographs


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(str(tmp_path / "ds"))


def one_shard(dataset: Dataset, table: str = "t", value: int = 1) -> Snapshot:
    return commit_table(dataset, table, [pa.table({"x": [value]})], {"value": value})


def test_photographs_come_back_byte_for_byte(tmp_path: Path) -> None:
    dataset, snapshot = images_dataset(str(tmp_path), photographs(5), per_shard=2)
    assert [ref.rows for ref in snapshot.shards.values()] == [2, 2, 1]
    again = Dataset(str(tmp_path)).snapshot("images")
    assert again == snapshot
    first = next(iter(again.shards.values()))
    whole, columns = dataset.read(first), Dataset(str(tmp_path)).read(first, columns=["image_id"])
    assert columns.column("image_id") == whole.column("image_id")
    assert dataset.read(first, columns=["width"]).column_names == ["width"], "the second read, without the checksum"


def test_a_table_that_was_not_published_is_named_with_what_there_is(dataset: Dataset) -> None:
    with pytest.raises(NoSuchTable, match="no published table 'captions'; found: no table at all"):
        dataset.snapshot("captions")
    one_shard(dataset, "images")
    with pytest.raises(NoSuchTable, match=r"found: images\. Run the job"):
        dataset.snapshot("captions")
    with pytest.raises(NoSuchTable, match="version nope of table 'images'"):
        dataset.snapshot("images", "nope")
    assert dataset.has("images")
    assert not dataset.has("captions")


def test_versions_stay_readable_and_going_back_points_back(dataset: Dataset) -> None:
    first, second = one_shard(dataset, value=1), one_shard(dataset, value=2)
    assert dataset.versions("t") == [first.version, second.version]
    assert dataset.snapshot("t") == second
    assert dataset.snapshot("t", first.version) == first
    assert dataset.publish("t", first.version, first.shards.values(), first.config) == dataset.snapshot("t")


def test_publishing_the_same_again_writes_nothing(dataset: Dataset) -> None:
    snapshot = one_shard(dataset)
    before = [entry.key for entry in dataset.store.list()]
    dataset.publish("t", snapshot.version, snapshot.shards.values(), snapshot.config)
    assert [entry.key for entry in dataset.store.list()] == before


def test_many_publishers_at_once_leave_one_order(dataset: Dataset) -> None:
    snapshots = [one_shard(dataset, value=i) for i in range(8)]
    count = len(list(dataset.store.list("commits/t/current")))
    start = threading.Barrier(8)

    def publish(snapshot: Snapshot) -> None:
        start.wait()
        Dataset(dataset.store.url).publish("t", snapshot.version, snapshot.shards.values(), snapshot.config)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish, snapshots))
    names = [entry.key for entry in dataset.store.list("commits/t/current")]
    assert [int(name.rsplit("/", 1)[1].removesuffix(".json")) for name in names] == list(range(len(names)))
    assert count + 7 <= len(names) <= count + 8, "everyone was published, whoever was current already excepted"


def test_a_writer_killed_in_a_commit_leaves_nothing_that_readers_see(dataset: Dataset) -> None:
    snapshot = one_shard(dataset)
    for folder in ("commits/t/current", f"commits/t/{snapshot.version}", "takedowns"):
        dataset.store.put(f"{folder}/.00000000.json.0123456789abcdef.part", b'{"vers')
    assert dataset.snapshot("t") == snapshot
    assert dataset.versions("t") == [snapshot.version]
    assert len(dataset.committed("t", snapshot.version)) == 1
    assert dataset.takedowns() == frozenset()
    assert one_shard(dataset, value=2) == dataset.snapshot("t")


def test_an_altered_or_missing_file_is_never_read(dataset: Dataset) -> None:
    ref = one_shard(dataset).shards["00000"]
    path = Path(dataset.store.url, ref.path)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(AlteredFile, match=r"was altered after its commit: sha256 .* delete commits/t/.* and run the job"):
        Dataset(dataset.store.url).read(ref)
    path.unlink()
    with pytest.raises(AlteredFile, match="is missing, but a commit names it"):
        Dataset(dataset.store.url).read(ref)


def test_a_ledger_that_does_not_add_up_is_not_committed(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="does not add up"):
        dataset.commit(table="t", version="v", shard="0", key="k", data=pa.table({"x": [1]}), outcomes=[], ledger=Ledger(5, 1),
                       inputs={}, stage_version=1)
    assert list(dataset.store.list()) == []


def test_outcomes_are_kept_with_reason_and_detail(dataset: Dataset) -> None:
    outcomes = [Outcome("a", "rejected", "too_small", "12 px"), Outcome("b", "failed", "Truncated", "at byte 3, ünïcode")]
    ref = dataset.commit(table="t", version="v", shard="0", key="k", data=pa.table({"x": [1]}), outcomes=outcomes,
                         ledger=Ledger.of(3, 1, outcomes), inputs={}, stage_version=1)
    assert dataset.outcomes(ref) == outcomes
    assert ref.ledger == Ledger(3, 1, {"too_small": 1}, {"Truncated": 1})


def test_takedowns_add_up(dataset: Dataset) -> None:
    dataset.add_takedown(["a", "b"], "asked by the author")
    dataset.add_takedown(["b", "c"], "asked again")
    assert dataset.takedowns() == frozenset("abc")


def test_a_dataset_travels_to_workers(dataset: Dataset) -> None:
    snapshot = one_shard(dataset)
    other = pickle.loads(pickle.dumps(dataset))
    assert isinstance(other.store, LocalStore)
    assert other.snapshot("t") == snapshot


def test_hashes_of_configurations_do_not_depend_on_the_order_of_keys() -> None:
    assert hash_config({"a": 1, "b": [1, 2]}) == hash_config({"b": [1, 2], "a": 1})
    assert hash_config({"a": 1}) != hash_config({"a": 2})


def test_a_commit_of_another_schema_version_teaches(dataset: Dataset) -> None:
    ref = next(iter(one_shard(dataset).shards.values()))
    known = asdict(ref)
    assert ShardRef.from_json(known) == ref
    with pytest.raises(StorageError, match=r"another schema version \(colour, sha256 of t 00000 missing or unknown\)"):
        ShardRef.from_json({**{name: value for name, value in known.items() if name != "sha256"}, "colour": 1})
