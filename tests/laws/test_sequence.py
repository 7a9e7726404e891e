"""Laws of the global sequence: nothing depends on the number of workers, on the batch or on where one begins."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from training import sequence

SEEDS = st.integers(0, 2**31)
SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0).map(tuple)


@given(world_log=st.integers(0, 6), per_worker=st.integers(1, 8), step=st.integers(0, 50))
def test_workers_together_have_every_position_once_and_each_stays_in_its_lanes(world_log: int, per_worker: int, step: int) -> None:
    world, lanes = 2**world_log, 64
    batch = world * per_worker
    mine = [list(sequence.positions(step, global_batch=batch, world=world, rank=rank)) for rank in range(world)]
    assert sorted(p for part in mine for p in part) == list(range(step * batch, (step + 1) * batch))
    for rank, part in enumerate(mine):
        assert all(p % lanes % world == rank for p in part), "a worker reads whole lanes, those of its rank"


@given(lanes=st.integers(1, 64), shards=st.integers(1, 200), rows=st.integers(1, 40))
def test_every_row_has_one_lane_if_there_are_enough_rows(lanes: int, shards: int, rows: int) -> None:
    units = [unit for lane in range(lanes) for unit in sequence.units_of(lane, lanes=lanes, shards=shards)]
    owned = Counter((unit.shard, row) for unit in units for row in unit.rows(rows))
    assert set(owned) == {(shard, row) for shard in range(shards) for row in range(rows)}
    parts = [sum(lane % shards == shard for lane in range(lanes)) for shard in range(min(shards, lanes))]
    if shards >= lanes or rows >= max(parts):
        assert set(owned.values()) == {1}


@given(lanes=st.integers(1, 64), shards=st.integers(1, 10), rows=st.integers(1, 5))
def test_no_lane_is_empty_in_a_small_corpus(lanes: int, shards: int, rows: int) -> None:
    for lane in range(min(lanes, shards) if shards >= lanes else lanes):
        assert sum(len(unit.rows(rows)) for unit in sequence.units_of(lane, lanes=lanes, shards=shards)) > 0


@given(seed=SEEDS, lane=st.integers(0, 63), sizes=SIZES, window=st.integers(1, 5), epoch=st.integers(0, 3))
def test_each_epoch_of_a_lane_holds_every_row_once_whatever_was_asked_before(
    seed: int, lane: int, sizes: tuple[int, ...], window: int, epoch: int
) -> None:
    order = sequence.LaneOrder(seed=seed, name="x", lane=lane, sizes=sizes, window=window)
    drawn = [order.locate(epoch * order.rows + i) for i in range(order.rows)]
    assert sorted(drawn) == [(unit, row) for unit, size in enumerate(sizes) for row in range(size)]
    assert drawn[-1] == sequence.LaneOrder(seed=seed, name="x", lane=lane, sizes=sizes, window=window).locate((epoch + 1) * order.rows - 1)


@given(seed=SEEDS, sizes=SIZES, window=st.integers(1, 4))
def test_a_window_is_finished_before_the_next_one_begins(seed: int, sizes: tuple[int, ...], window: int) -> None:
    order = sequence.LaneOrder(seed=seed, name="x", lane=0, sizes=sizes, window=window)
    units = [order.locate(i)[0] for i in range(order.rows)]
    spans = [(units.index(unit), len(units) - 1 - units[::-1].index(unit)) for unit in set(units)]
    for first, last in spans:
        open_at_once = {unit for unit, (a, b) in zip(set(units), spans, strict=True) if a <= last and b >= first}
        assert len(open_at_once) <= window, "no more shards than the window need be in memory"


@settings(max_examples=30)
@given(seed=SEEDS, lane=st.integers(0, 63), weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=4), block=st.integers(0, 3))
def test_a_block_holds_each_source_in_its_share_and_counts_on(seed: int, lane: int, weights: list[float], block: int) -> None:
    parts = sequence.shares(weights)
    assert sum(parts) == sequence.BLOCK_TURNS
    assert all(abs(part / 1000 - weight / sum(weights)) < 0.001 for part, weight in zip(parts, weights, strict=True))
    drawn = [sequence.draw_source(seed, lane, turn, parts) for turn in range(block * 1000, (block + 1) * 1000)]
    for source, part in enumerate(parts):
        assert [index for found, index in drawn if found == source] == list(range(block * part, (block + 1) * part))


@given(seed=SEEDS, n=st.integers(1, 300))
def test_permutations_are_permutations_and_keys_tell_purposes_apart(seed: int, n: int) -> None:
    assert sorted(sequence.permutation(n, sequence.key(seed, "a"))) == list(range(n))
    assert sequence.key(seed, "a", 1) != sequence.key(seed, "a", 2) != sequence.key(seed, "b", 2)
    assert 0 <= sequence.uniform(seed, "crop", n) < 1
