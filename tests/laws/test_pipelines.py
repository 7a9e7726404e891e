"""Laws of ingest and curate: nothing vanishes, membership and winners are functions of the rows, names round-trip."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contamination import TestPictures, contaminated
from pipelines.corpus_facts import CorpusFacts, Rows, facts_of
from pipelines.duplicates import near_losers
from pipelines.inputs_table import ShardLimits, group
from pipelines.sources import to_key, to_position
from pipelines.stages.hashes import CROPS, flipped_distance, mirrored, to_words
from pipelines.stages.selection import Selection
from tests.unit.pipelines.hash_rows import brute, forms
from tests.unit.pipelines.score_rows import RULE, row, table

EXAMPLES = settings(max_examples=60, deadline=None)
one_score = st.builds(row, st.integers(0, 1000).map(str), image=st.integers(0, 6).map("image {}".format),
                      width=st.sampled_from([50, 200, 300]), sharpness=st.sampled_from([1, 20, 30]), phash=st.integers(0, 255))
scores = st.lists(one_score, max_size=25, unique_by=lambda one: one["source_id"])


def consistent(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Equal bytes have equal scores."""
    first: dict[str, dict[str, Any]] = {}
    return [first.setdefault(one["image_id"], one) | {"source_id": one["source_id"]} for one in rows]


def columns(rows: list[dict[str, Any]], shard_of: list[int]) -> Rows:
    def array(values: list[Any], kind: str) -> Any:
        return np.array(values, dtype=kind)

    return Rows(image_id=array([bytes.fromhex(one["image_id"]) for one in rows], "S32"),
                source_id=array([bytes.fromhex(one["source_id"]) for one in rows], "S16"), shard=array(shard_of, "i8"),
                pixels=array([one["width"] * one["height"] for one in rows], "i8"),
                short_side=array([one["short_side"] for one in rows], "i8"),
                measures={name: array([one[name] for one in rows], "f8") for name in ("sharpness", "flatness", "bits_per_pixel")},
                words_NF4=forms(*[hashes_of(rows, "phash")] * (1 + len(CROPS))),
                is_clear=np.ones(len(rows), bool), shards=[f"{i:05d}" for i in range(5)])


def hashes_of(rows: list[dict[str, Any]], column: str) -> Any:
    return to_words(b"".join(bytes.fromhex(one[column]) for one in rows))


def words(hashes: list[int]) -> Any:
    return to_words(b"".join(one.to_bytes(32) for one in hashes))


def verdicts(facts: CorpusFacts) -> dict[str, list[str]]:
    return {source: why for of_shard in facts.duplicates.values() for source, why in of_shard.items()}


@EXAMPLES
@given(rows=scores.map(consistent), data=st.data())
def test_winners_do_not_depend_on_order_or_shards(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rows))
    shards = data.draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
    one, other = facts_of(columns(rows, [0] * len(rows)), RULE), facts_of(columns(shuffled, shards), RULE)
    assert verdicts(one) == verdicts(other)
    assert one.limits == other.limits


@EXAMPLES
@given(rows=scores.map(consistent))
def test_of_copies_one_is_kept_and_of_what_is_kept_no_two_are_copies(rows: list[dict[str, Any]]) -> None:
    facts = facts_of(columns(rows, [0] * len(rows)), RULE)
    result = Selection(rule=RULE).process({"scores": table(*rows)}, facts.params("00000"))
    kept = [one for one, decided in zip(rows, result.table.to_pylist()) if decided["accepted"]]
    for i, a in enumerate(kept):
        for b in kept[:i]:
            assert a["image_id"] != b["image_id"]
            assert (int(a["phash"], 16) ^ int(b["phash"], 16)).bit_count() > RULE.near_radius
    winners = {one["image_id"] for one in kept} | {one["source_id"] for one in kept}
    for outcome in result.outcomes:
        if outcome.reason == "duplicate_near":
            assert outcome.detail in winners
    good = [one for one in rows if one["short_side"] >= RULE.min_short_side and one["sharpness"] >= 10]
    assert bool(kept) == bool(good)  # a group never loses all of its members
    assert len(rows) == len(kept) + len(result.outcomes) == result.table.num_rows


@EXAMPLES
@given(hashes=st.lists(st.integers(0, 2**256 - 1) | st.integers(0, 63), unique=True, max_size=40), radius=st.integers(0, 31),
       data=st.data())
def test_copies_and_test_pictures_are_those_of_brute_force(hashes: list[int], radius: int, data: st.DataObject) -> None:
    if hashes:  # random hashes lie 128 bits apart: add some that are near
        flips = data.draw(st.lists(st.tuples(st.sampled_from(hashes), st.sets(st.integers(0, 255), max_size=17)), max_size=10))
        hashes = sorted({*hashes, *(one ^ sum(1 << bit for bit in bits) for one, bits in flips)})
    some = words(hashes)
    assert dict(near_losers(forms(some), np.arange(len(some)), radius, 1)) == brute(forms(some), radius)
    half = len(some) // 2
    tests = TestPictures(names=[str(n) for n in range(half)], words_M4=some[:half], owner_M=np.arange(half))
    near = {i: np.flatnonzero(flipped_distance(one[None], some[:half]) <= radius) for i, one in enumerate(some[half:])}
    found = contaminated(np.zeros(len(some) - half, "S32"), some[half:, None], np.ones(len(some) - half, bool), tests, radius, 1)
    assert found == {i: str(those[0]) for i, those in near.items() if len(those)}


@EXAMPLES
@given(hashes=st.lists(st.integers(0, 255), max_size=30), turned=st.sets(st.integers(0, 29)))
def test_from_the_best_to_the_worst_a_hash_is_kept_unless_a_kept_one_is_near(hashes: list[int], turned: set[int]) -> None:
    own = words(hashes).copy()
    for i in turned & set(range(len(hashes))):
        own[i] = mirrored(own[i:i + 1])[0]
    kept: list[int] = []
    expected = {}
    for i, one in enumerate(hashes):  # each of them or its mirror image: as near as the hashes that they were made of
        near = [j for j in kept if (hashes[j] ^ one).bit_count() <= 2]
        if near:
            expected[i] = min(near)
        else:
            kept.append(i)
    assert dict(near_losers(forms(own), np.arange(len(own)), 2, 1)) == expected


@EXAMPLES
@given(rows=scores.map(consistent), side=st.integers(1, 400))
def test_a_stricter_size_never_accepts_a_smaller_picture(rows: list[dict[str, Any]], side: int) -> None:
    rule = replace(RULE, min_short_side=side)
    facts = facts_of(columns(rows, [0] * len(rows)), rule)
    result = Selection(rule=rule).process({"scores": table(*rows)}, facts.params("00000")).table.to_pylist()
    assert all(one["short_side"] >= side for one, decided in zip(rows, result) if decided["accepted"])


@EXAMPLES
@given(sizes=st.lists(st.integers(0, 50), max_size=40), size_bytes=st.integers(1, 100), count=st.integers(1, 8), start=st.integers(0, 40))
def test_shards_partition_the_rows_and_a_restart_changes_nothing(sizes: list[int], size_bytes: int, count: int, start: int) -> None:
    limits = ShardLimits(size_bytes=size_bytes, rows=count)
    rows = [{"n": n, "size_bytes": size} for n, size in enumerate(sizes)]
    shards = list(group(rows, limits))
    assert [one for shard in shards for one in shard] == rows
    for shard in shards:
        assert 1 <= len(shard) <= count
        assert len(shard) == 1 or sum(one["size_bytes"] for one in shard) <= size_bytes
    for shard, following in pairwise(shards):  # and none is closed too early
        assert len(shard) == count or sum(one["size_bytes"] for one in [*shard, following[0]]) > size_bytes
    done = shards[:start]
    rest = rows[sum(map(len, done)):]
    assert done + list(group(rest, limits)) == shards


@settings(max_examples=300, deadline=None)
@given(name=st.binary(min_size=1, max_size=30).filter(lambda raw: b"\0" not in raw), tar=st.booleans())
def test_any_name_that_a_disk_allows_round_trips_as_text(name: bytes, tar: bool) -> None:
    position = to_position(os.fsdecode(name), tar=tar)
    position.encode("utf-8")
    assert os.fsencode(to_key(position)) == name
    assert not (tar and "!" in position)
