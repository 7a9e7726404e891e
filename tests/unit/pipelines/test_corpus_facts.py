"""Facts of a corpus: thresholds within bounds, and the winner of each group of duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.dataset import Dataset
from pipelines.corpus_facts import CorpusFacts, _in_a_file, corpus_facts, threshold
from pipelines.stages.selection import Threshold
from tests.helpers import commit_table
from tests.unit.pipelines.score_rows import RULE, row, source_id, table


def facts(tmp_path: Path, *shards: list[dict[str, Any]], taken_down: tuple[str, ...] = ()) -> CorpusFacts:
    dataset = Dataset(str(tmp_path / "ds"))
    if taken_down:
        dataset.add_takedown(taken_down, "a test")
    return corpus_facts(dataset, commit_table(dataset, "scores", [table(*rows) for rows in shards]), RULE)


def losers(found: CorpusFacts) -> dict[str, list[str]]:
    return {source: why for of_shard in found.duplicates.values() for source, why in of_shard.items()}


def test_a_threshold_is_a_percentile_within_bounds() -> None:
    values = np.arange(101.0)
    assert threshold(values, Threshold(percentile=5, at_least=0, at_most=100)) == 5
    assert threshold(values, Threshold(percentile=5, at_least=20, at_most=100)) == 20
    assert threshold(values, Threshold(percentile=90, at_least=0, at_most=50)) == 50
    assert threshold(values[:0], Threshold(percentile=5, at_least=3, at_most=9)) == 3
    assert threshold(np.array([1.23456]), Threshold(percentile=50, at_least=0, at_most=9)) == 1.23  # three digits
    with pytest.raises(ValueError, match="at_least no larger"):
        Threshold(percentile=5, at_least=2, at_most=1)


def test_the_winner_has_more_pixels_then_more_bytes_then_the_smaller_id(tmp_path: Path) -> None:
    found = facts(tmp_path, [row("small", phash=0), row("saved_again", width=300, phash=1, bits_per_pixel=1.9, sharpness=900)],
                  [row("best", width=300, phash=3, bits_per_pixel=2), row("other", phash=0xFFFFFF)])
    best = row("best")["image_id"]
    assert losers(found) == {source_id(name): ["duplicate_near", best] for name in ("small", "saved_again")}
    assert set(found.duplicates) == {"00000"}
    assert found.params("00001")["duplicates"] == {}


def test_equal_bytes_are_exact_duplicates_of_the_smaller_source_id(tmp_path: Path) -> None:
    found = facts(tmp_path, [row("a", image="same"), row("b", image="same")], [row("c", image="same")])
    first, *rest = sorted(source_id(name) for name in "abc")
    assert losers(found) == {one: ["duplicate_exact", first] for one in rest}


def test_a_chain_of_small_changes_does_not_lose_its_far_end(tmp_path: Path) -> None:
    chain = [row(f"{i}", width=1000 - i, phash=(1 << 3 * i) - 1) for i in range(4)]  # neighbours differ in 3 bits, ends in 9
    found = losers(facts(tmp_path, chain))
    assert set(found) == {source_id("1"), source_id("3")}  # 0 and 2 differ in 6 bits: both stay
    assert found[source_id("3")] == ["duplicate_near", chain[2]["image_id"]]


def test_rows_that_are_rejected_anyway_do_not_win(tmp_path: Path) -> None:
    found = facts(tmp_path, [row("blurred", width=900, phash=0, sharpness=1), row("flat", width=800, phash=0, flatness=1),
                             row("gone", width=700, phash=0), row("kept", phash=0), row("tiny", width=99, phash=0)],
                  taken_down=(source_id("gone"),))
    assert losers(found) == {}
    assert found.taken_down == {"00000": [source_id("gone")]}


def test_a_takedown_of_an_image_reaches_every_source_of_it(tmp_path: Path) -> None:
    found = facts(tmp_path, [row("a", image="x")], [row("b", image="x"), row("c")], taken_down=(row("a", image="x")["image_id"],))
    assert found.taken_down == {"00000": [source_id("a")], "00001": [source_id("b")]}


def test_an_empty_corpus_has_facts(tmp_path: Path) -> None:
    found = facts(tmp_path, [], [])
    assert (found.limits, found.duplicates) == ({"sharpness": 10, "flatness": 0.5}, {})


def test_ids_that_end_in_zero_bytes_are_whole(tmp_path: Path) -> None:
    one, two = row("a", width=300, phash=0) | {"image_id": "ab" * 31 + "00"}, row("b", phash=0) | {"source_id": "cd" * 15 + "00"}
    assert losers(facts(tmp_path, [one, two])) == {"cd" * 15 + "00": ["duplicate_near", "ab" * 31 + "00"]}


def test_a_disk_without_room_is_told_before_it_is_written_to() -> None:
    with pytest.raises(ValueError, match=r"GB free, and 492581\.2 GB are needed .* TMPDIR"):
        _in_a_file((1 << 40, 14, 4), np.uint64)
