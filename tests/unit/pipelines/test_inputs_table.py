"""The inputs table: who writes a shard, what a killed driver leaves, and what a retry adds."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.dataset import Dataset
from pipelines import inputs_table, table_shards
from pipelines.inputs_table import ShardLimits, group
from pipelines.sources import Source
from pipelines.table_columns import Columns
from pipelines.table_shards import TableOptions

LIMITS = ShardLimits(rows=2)


def folder_of(path: Path, count: int) -> Source:
    path.mkdir(exist_ok=True)
    for i in range(count):
        (path / f"{i:03d}.jpg").write_bytes(b"x" * (i + 1))
    return Source(str(path))


def add(dataset: Dataset, source: Source) -> None:
    while not inputs_table.append(dataset, group(inputs_table.new_rows(dataset, source), LIMITS)):
        pass


def listed(dataset: Dataset) -> list[str]:
    return [one for ref in inputs_table.publish(dataset).shards.values() for one in dataset.read(ref).column("position").to_pylist()]


def test_shards_are_closed_by_bytes_or_by_rows() -> None:
    rows = [{"size_bytes": size} for size in (5, 5, 1, 20, 1, 1, 1)]
    assert [len(shard) for shard in group(rows, ShardLimits(size_bytes=10, rows=2))] == [2, 1, 1, 2, 1]
    with pytest.raises(ValueError, match="at least 1"):
        ShardLimits(rows=0)


def test_what_is_new_is_appended_and_what_is_known_is_not(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path / "ds"))
    add(dataset, folder_of(tmp_path / "photos", 3))
    before = inputs_table.publish(dataset)
    add(dataset, folder_of(tmp_path / "photos", 3))
    assert inputs_table.publish(dataset) == before
    add(dataset, folder_of(tmp_path / "photos", 5))
    after = inputs_table.publish(dataset)
    assert {shard: after.shards[shard] for shard in before.shards} == before.shards
    assert listed(dataset) == [f"{i:03d}.jpg" for i in range(5)]


def test_a_killed_driver_that_is_started_again_makes_the_same_shards(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "photos", 7)
    whole, killed = Dataset(str(tmp_path / "whole")), Dataset(str(tmp_path / "killed"))
    add(whole, source)
    shards = list(group(inputs_table.new_rows(killed, source), LIMITS))
    inputs_table.append(killed, shards[:2])  # here it was killed: two shards committed, nothing published
    add(killed, source)
    assert inputs_table.publish(killed).digest == inputs_table.publish(whole).digest


def test_of_two_drivers_with_different_listings_none_loses_or_repeats_a_source(tmp_path: Path) -> None:
    first, second = folder_of(tmp_path / "a", 5), folder_of(tmp_path / "b", 4)
    dataset, rival = Dataset(str(tmp_path / "ds")), Dataset(str(tmp_path / "ds"))

    def interrupted():  # type: ignore[no-untyped-def]
        for number, shard in enumerate(group(inputs_table.new_rows(dataset, first), LIMITS)):
            if number == 1:
                add(rival, second)  # takes ordinal 1 and more, between our first and second shard
            yield shard

    assert not inputs_table.append(dataset, interrupted())
    add(dataset, first)
    add(dataset, second)
    snapshot = inputs_table.publish(dataset)
    assert list(snapshot.shards) == [f"{i:05d}" for i in range(len(snapshot.shards))]
    found = Counter(one for ref in snapshot.shards.values() for one in inputs_table.source_ids(dataset, ref))
    assert set(found.values()) == {1}
    assert sum(found.values()) == 9


def test_the_driver_holds_a_few_pieces_of_a_table_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url\n" + "".join(f"http://example.org/{i}.jpg\n" for i in range(20_000)))
    source = Source(str(tmp_path / "list.csv"), tables_too=True)
    list(source.items())
    dataset, alive, most = Dataset(str(tmp_path / "ds")), weakref.WeakValueDictionary[int, inputs_table.Piece](), 0
    options = TableOptions(columns=Columns(), wanted=inputs_table.Wanted(), limits=ShardLimits(rows=100), expected_bytes=1)

    def watched() -> Iterator[inputs_table.Piece]:
        nonlocal most
        for number, piece in enumerate(table_shards.pieces(dataset, source, "list", options)):
            alive[number] = piece
            most = max(most, len(alive))
            yield piece

    assert inputs_table.append_tables(dataset, watched())
    assert inputs_table.publish(dataset).rows == 20_000
    assert 1 < most <= 2 * inputs_table.COMMITTERS + 2, f"{most} of 200 pieces were held"


def test_a_source_has_its_name_or_its_address_in_its_ids() -> None:
    assert inputs_table.source_id("here", "a.jpg") != inputs_table.source_id("there", "a.jpg")
    assert inputs_table.source_id("a", "bc") != inputs_table.source_id("ab", "c")
    assert len(inputs_table.source_id("here", "a.jpg")) == 32


def test_an_empty_source_is_an_error_that_counts_what_else_is_there(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/readme.md").write_text("no photograph")
    with pytest.raises(ValueError, match=r"no file with the suffix of an image \(1 \.md\).*lists=true"):
        list(inputs_table.new_rows(Dataset(str(tmp_path / "ds")), Source(str(tmp_path / "photos"))))
