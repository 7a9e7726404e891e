"""Rows that are verified one by one: as they were committed, or not at all."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.apart import NotProved, RowsApart
from infra.dataset import Dataset, ShardRef
from tests.helpers import IMAGES, commit_table, image_row, photographs, shrunk

COLUMNS = ["image_id", "source_id", "bytes", "parent_image_id", "retrieved_at"]


def assert_proved(apart: RowsApart, row: dict[str, object]) -> None:
    """`retrieved_at` is in no digest."""
    found = apart[str(row["image_id"])]
    assert {**found, "bytes": bytes(found["bytes"])} == {name: row[name] for name in ("image_id", "source_id", "bytes")}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    return [image_row(shrunk(path, 24), path.name) for path in photographs(3)] * 40  # two row groups; rows that repeat


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> tuple[Dataset, ShardRef]:
    dataset = Dataset(str(tmp_path_factory.mktemp("apart")))
    return dataset, commit_table(dataset, "images", [pa.Table.from_pylist(rows, schema=IMAGES)]).shards["00000"]


def test_each_row_is_what_was_committed(shard: tuple[Dataset, ShardRef], rows: list[dict[str, object]]) -> None:
    apart = RowsApart(shard[0].store, shard[1], COLUMNS)
    for row in rows:
        assert_proved(apart, row)


@settings(max_examples=120, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), kept=st.just(1.0) | st.floats(0, 1))
def test_nothing_altered_is_taken_for_whole(
    shard: tuple[Dataset, ShardRef], rows: list[dict[str, object]], where: float, bit: int, kept: float
) -> None:
    dataset, ref = shard
    path = Path(dataset.store.url, ref.path)
    whole = path.read_bytes()
    data = bytearray(whole)
    data[int(where * len(data))] ^= 1 << bit
    try:
        path.write_bytes(data[: int(kept * len(data))])
        apart = RowsApart(dataset.store, ref, COLUMNS)
        for row in rows[:3]:
            assert_proved(apart, row)
    except NotProved:
        pass
    finally:
        path.write_bytes(whole)


def test_a_missing_file_and_ids_that_are_no_hashes_prove_nothing(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    dataset = Dataset(str(tmp_path))
    named = [{**row, "image_id": f"{i:064x}"} for i, row in enumerate(rows[:3])]
    refs = commit_table(dataset, "images", [pa.Table.from_pylist(rows, schema=IMAGES) for rows in (named, rows)]).shards
    with pytest.raises(NotProved, match="ids are not its images' sha256"):
        RowsApart(dataset.store, refs["00000"], COLUMNS)
    with pytest.raises(NotProved, match="no such row"):
        RowsApart(dataset.store, refs["00001"], COLUMNS)["no such row"]
    Path(dataset.store.url, refs["00001"].path).unlink()
    with pytest.raises(NotProved, match="does not exist"):
        RowsApart(dataset.store, refs["00001"], COLUMNS)
