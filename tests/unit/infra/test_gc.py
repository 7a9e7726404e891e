"""Sweeping and takedowns: what goes, what stays, and that a job finds the rewritten shard."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from infra import gc
from infra.dataset import Dataset
from infra.ledger import Ledger, Outcome
from pipelines.runtime.plan import plan_tasks
from pipelines.runtime.stage import version_of
from tests.helpers import IMAGES, commit_table, images_dataset, photographs
from tests.toys import Measure, run_here

NOW = timedelta(0)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return images_dataset(str(tmp_path / "ds"), per_shard=2, side_px=32)[0]


def keys(dataset: Dataset) -> set[str]:
    return {entry.key for entry in dataset.store.list()}


def image_ids(dataset: Dataset, table: str = "images") -> list[str]:
    return [one for ref in dataset.snapshot(table).shards.values() for one in dataset.read(ref, ["image_id"]).column(0).to_pylist()]


def holds(dataset: Dataset, data: bytes) -> bool:
    """Whether any file under the dataset contains these bytes."""
    return any(data in dataset.store.read(key) for key in keys(dataset))


# sweeping

def test_only_files_that_no_commit_names_are_swept(dataset: Dataset) -> None:
    run_here(Measure(threshold=500), dataset, dataset.snapshot("images"))
    before = keys(dataset)
    strays = {"images/00000.0123456789abcdef.parquet", "scores/00009.0123456789abcdef.outcomes.parquet",
              "exports/00000.0123456789abcdef.tar",
              "attempts/scores/00000.ab/0-2.0123456789abcdef.json", "commits/scores/v/.00000.k.json.0123456789abcdef.part"}
    foreign = {"README.md", "images/mine.parquet", "training/checkpoint.0123456789abcdef.safetensors", "notes/a.json"}
    for key in strays | foreign:
        dataset.store.put(key, b"x")
    assert {entry.key for entry in gc.rubbish(dataset, NOW)} == strays
    assert gc.rubbish(dataset) == []  # younger than the grace period
    for entry in gc.rubbish(dataset, NOW):
        dataset.store.delete(entry.key)
    assert keys(dataset) == before | foreign
    run_here(Measure(threshold=500), dataset, dataset.snapshot("images"))
    assert keys(dataset) == before | foreign  # nothing was missing


def test_the_grace_period_is_counted_from_the_last_write(dataset: Dataset) -> None:
    stray = "images/00000.0123456789abcdef.parquet"
    dataset.store.put(stray, b"x")
    yesterday = time.time() - 25 * 3600
    os.utime(Path(dataset.store.url, stray), (yesterday, yesterday))
    assert [entry.key for entry in gc.rubbish(dataset)] == [stray]


def test_a_clock_that_went_back_sweeps_nothing(dataset: Dataset) -> None:
    stray = "images/00000.0123456789abcdef.parquet"
    dataset.store.put(stray, b"x")
    tomorrow = time.time() + 25 * 3600
    os.utime(Path(dataset.store.url, stray), (tomorrow, tomorrow))
    assert gc.rubbish(dataset) == []


def test_what_is_committed_between_the_listing_and_the_reading_is_kept(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gc.named_files

    def commit_first(of: Dataset) -> set[str]:
        commit_table(dataset, "late", [pa.table({"image_id": ["a"]})])
        return real(of)

    monkeypatch.setattr(gc, "named_files", commit_first)
    assert gc.rubbish(dataset, NOW) == []


def test_superseded_versions_stay_readable(dataset: Dataset) -> None:
    images = dataset.snapshot("images")
    old = run_here(Measure(threshold=100), dataset, images)
    run_here(Measure(threshold=900), dataset, images)
    for entry in gc.rubbish(dataset, NOW):
        dataset.store.delete(entry.key)
    assert dataset.snapshot("scores", old.version) == old
    assert [dataset.read(ref).num_rows for ref in old.shards.values()] == [ref.rows for ref in old.shards.values()]


# takedowns

def test_a_taken_down_image_leaves_no_byte_behind(dataset: Dataset) -> None:
    before = dataset.snapshot("images")
    row = dataset.read(before.shards["00001"]).to_pylist()[0]
    assert holds(dataset, row["bytes"])
    assert gc.take_down(dataset, frozenset({row["image_id"]}), "a test", dry_run=True)
    assert dataset.snapshot("images") == before
    found = gc.take_down(dataset, frozenset({row["image_id"]}), "a test")
    assert [(hit.ref.table, hit.ref.shard) for hit in found] == [("images", "00001")]
    after = dataset.snapshot("images")
    assert not holds(dataset, row["bytes"])
    assert row["image_id"] not in image_ids(dataset)
    assert (after.version, after.rows, after.ledger.rejected) == (before.version, before.rows - 1, {"taken_down": 1})
    assert after.ledger.total == before.ledger.total
    assert {shard: ref for shard, ref in after.shards.items() if shard != "00001"} == \
        {shard: ref for shard, ref in before.shards.items() if shard != "00001"}
    assert dataset.takedowns() == {row["image_id"], row["source_id"]}
    assert gc.take_down(dataset, dataset.takedowns(), "again") == []
    assert gc.rubbish(dataset, NOW) == []


def test_a_takedown_reaches_every_source_of_the_same_bytes(tmp_path: Path) -> None:
    one, other = photographs(2)
    dataset, _ = images_dataset(str(tmp_path / "ds"), [one, other], per_shard=1, side_px=32)
    row = dataset.read(dataset.snapshot("images").shards["00000"]).to_pylist()[0]
    copy = pa.Table.from_pylist([row | {"source_id": "f" * 32}], schema=IMAGES)
    commit_table(dataset, "images", [dataset.read(ref) for ref in dataset.snapshot("images").shards.values()] + [copy])
    gc.take_down(dataset, frozenset({row["source_id"]}), "a test", grace=NOW)
    assert not holds(dataset, row["bytes"])
    assert "f" * 32 in dataset.takedowns()


def test_the_job_that_made_the_shard_finds_the_rewritten_one(dataset: Dataset) -> None:
    """A second takedown in the same shard too: keys are those that a stage plans with `taken_down` in its params."""
    @dataclass(frozen=True, kw_only=True)
    class Copy(Measure):
        table: str = "images"
        row_id: str = "source_id"

    inputs = commit_table(dataset, "inputs", [pa.table({"source_id": ["s1", "s2", "s3", "bad"]})])
    schema = pa.schema([("image_id", pa.string()), ("source_id", pa.string()), ("bytes", pa.binary())])
    rows = pa.table({"image_id": ["i1", "i2", "i3"], "source_id": ["s1", "s2", "s3"], "bytes": [b"1", b"2", b"3"]}, schema=schema)
    stage = Copy()
    (task,) = plan_tasks(stage, {"inputs": inputs})
    ref = dataset.commit(table="images", version=version_of(stage), shard=task.shard, key=task.key, data=rows,
                         outcomes=[Outcome("bad", "failed", "empty")], ledger=Ledger(4, 3, {}, {"empty": 1}),
                         inputs={"inputs": inputs.shards["00000"].digest}, stage_version=1)
    dataset.publish("images", version_of(stage), [ref], {})
    taken: list[str] = []
    for image_id, source_id in (("i2", "s2"), ("bad", "bad"), ("i1", "s1")):
        gc.take_down(dataset, frozenset({image_id}), "a test", grace=NOW)
        taken = sorted([*taken, source_id])
        now = dataset.snapshot("images").shards["00000"]
        (planned,) = plan_tasks(stage, {"inputs": inputs}, lambda shard, ids=tuple(taken): {"taken_down": list(ids)})
        assert now.key == planned.key
        accepted = len({"s1", "s2", "s3"} - set(taken))
        assert now.ledger == Ledger(4, accepted, {"taken_down": len(taken)}, {} if "bad" in taken else {"empty": 1})


def test_a_crash_in_the_middle_is_mended_by_the_same_command(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataset.read(dataset.snapshot("images").shards["00000"]).to_pylist()[1]
    with monkeypatch.context() as patch:
        patch.setattr(gc, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            gc.take_down(dataset, frozenset({row["image_id"]}), "a test")
    assert row["image_id"] in image_ids(dataset)  # the old shard stands, whole
    gc.take_down(dataset, frozenset({row["image_id"]}), "a test")
    assert row["image_id"] not in image_ids(dataset)
    assert not holds(dataset, row["bytes"])


def test_derived_pictures_go_with_their_parent(tmp_path: Path) -> None:
    negatives = Dataset(str(tmp_path / "negatives"))
    schema = pa.schema([("image_id", pa.string()), ("parent_image_id", pa.string()), ("bytes", pa.binary())])
    commit_table(negatives, "images", [pa.table({"image_id": ["n1", "n2"], "parent_image_id": ["p1", "p2"], "bytes": [b"one", b"two"]},
                                                schema=schema)])
    gc.take_down(negatives, frozenset({"p1"}), "the parent")
    assert image_ids(negatives) == ["n2"]


def test_an_export_loses_the_tar_and_its_shard(tmp_path: Path) -> None:
    export = Dataset(str(tmp_path / "export"))
    tars = [f"exports/{i:05d}.0123456789abcde{i}.tar" for i in range(2)]
    for tar in tars:
        export.store.put(tar, b"tar")
    commit_table(export, "exports", [pa.table({"image_id": [f"i{i}"], "source_id": [f"s{i}"], "tar": [tar]}) for i, tar in enumerate(tars)])
    assert gc.rubbish(export, NOW) == []
    gc.take_down(export, frozenset({"i0"}), "a test")
    assert not export.store.exists(tars[0])
    assert export.store.exists(tars[1])
    assert list(export.snapshot("exports").shards) == ["00001"]
