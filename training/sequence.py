"""The global sequence of samples, as integer arithmetic: no I/O, no state, no number of workers in any answer.

Position p (0, 1, 2, …) of the run belongs to lane p % lanes and is that lane's turn p // lanes. A lane owns units (shards,
or parts of one where there are fewer shards than lanes) and shuffles their rows within a window of units; it goes round them
again and again, in another order each time. Which source of the mixture a turn draws from follows from shuffled blocks
that hold each source in its exact share. Every number comes from (seed, purpose, position), so a worker that reads the
lanes l with l % world == rank sees its part of one sequence, whatever the world, and any position can be asked for first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import accumulate

import numpy as np

BLOCK_TURNS = 1000  # choice: the mixture is exact in every 1000 draws of a lane, fine enough for the paper's 0.5 % negatives
MASK64 = 2**64 - 1


def key(seed: int, purpose: str, *numbers: int | str) -> int:
    """64 bits that depend on the seed, on what they are for, and on any numbers or names of the place."""
    return int.from_bytes(blake2b(repr((seed, purpose, *numbers)).encode(), digest_size=8).digest())


def uniform(seed: int, purpose: str, *numbers: int | str) -> float:
    """One draw of [0, 1), with 53 bits."""
    return (key(seed, purpose, *numbers) >> 11) * 2.0**-53


@lru_cache(maxsize=256)
def permutation(n: int, key64: int) -> tuple[int, ...]:
    """0 … n-1 in an order that the key decides: sorted by the mixed bits of key + index (splitmix64; the same everywhere)."""
    x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key64 & MASK64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return tuple(int(i) for i in np.argsort(x ^ (x >> np.uint64(31)), kind="stable"))


# ---------------------------------------------------------------- positions, workers, lanes


def positions(step: int, *, global_batch: int, world: int, rank: int) -> range:
    """The positions of one step that are this worker's. The world divides the batch and the lanes, so they lie in its lanes."""
    assert global_batch % world == 0, f"global batch {global_batch} does not divide into {world} workers"
    return range(step * global_batch + rank, (step + 1) * global_batch, world)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Rows of one shard that belong to one lane: every `parts`-th usable row, beginning with `part`."""

    shard: int
    part: int
    parts: int

    def rows(self, usable: int) -> range:
        """Which of a shard's usable rows are this unit's. A shard of fewer rows than parts gives each part one row."""
        if 0 < usable < self.parts:
            one = self.part % usable
            return range(one, one + 1)
        return range(self.part, usable, self.parts)


def units_of(lane: int, *, lanes: int, shards: int) -> list[Unit]:
    """The units that a lane owns: whole shards if there are as many as lanes, else one part of a shard that lanes share."""
    if shards >= lanes:
        return [Unit(shard=shard, part=0, parts=1) for shard in range(lane, shards, lanes)]
    if shards == 0:
        return []
    shard = lane % shards
    sharing = (lanes - 1 - shard) // shards + 1
    return [Unit(shard=shard, part=lane // shards, parts=sharing)]


# ---------------------------------------------------------------- mixture


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Turns of each source in a block of 1000, by largest remainder; ValueError if a weight is too small to be seen."""
    if not weights or min(weights) <= 0:
        raise ValueError(f"mixture weights {list(weights)} must all be above 0: leave out a source that is not wanted")
    exact = [weight / sum(weights) * BLOCK_TURNS for weight in weights]
    found = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (found[i] - exact[i], i))
    for i in by_remainder[: BLOCK_TURNS - sum(found)]:
        found[i] += 1
    if min(found) == 0:
        raise ValueError(f"mixture weights {list(weights)}: a share below 1 in {BLOCK_TURNS} is never drawn: raise it or leave it out")
    return tuple(found)


@lru_cache(maxsize=512)
def _block(key64: int, parts: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(source, how often it came before within the block) for each of the block's turns."""
    sources = [source for source, count in enumerate(parts) for _ in range(count)]
    seen = [0] * len(parts)
    block = []
    for i in permutation(len(sources), key64):
        block.append((sources[i], seen[sources[i]]))
        seen[sources[i]] += 1
    return tuple(block)


def draw_source(seed: int, lane: int, turn: int, parts: tuple[int, ...]) -> tuple[int, int]:
    """Which source a lane's turn draws from, and how often this lane has drawn from it before."""
    block, inside = divmod(turn, sum(parts))
    source, before = _block(key(seed, "mixture", lane, block), parts)[inside]
    return source, block * parts[source] + before


# ---------------------------------------------------------------- order of rows within a lane


@dataclass(frozen=True, kw_only=True)
class LaneOrder:
    """The endless order of one lane's rows. `sizes[u]` are the rows of unit u; `name` tells sources apart."""

    seed: int
    name: str
    lane: int
    sizes: tuple[int, ...]
    window: int  # units that are shuffled together

    @cached_property
    def rows(self) -> int:
        """Rows of one epoch of the lane."""
        return sum(self.sizes)

    def locate(self, index: int) -> tuple[int, int]:
        """(unit, row within the unit) of the lane's index-th draw; each epoch holds every row once."""
        assert self.rows > 0, f"lane {self.lane} of {self.name!r} has no rows"
        epoch, offset = divmod(index, self.rows)
        order, starts = _epoch(self.sizes, self.window, key(self.seed, f"units of {self.name}", self.lane, epoch))
        window = bisect_right(starts, offset) - 1
        units = order[window * self.window : (window + 1) * self.window]
        ends = list(accumulate(self.sizes[u] for u in units))
        inside = permutation(ends[-1], key(self.seed, f"rows of {self.name}", self.lane, epoch, window))[offset - starts[window]]
        k = bisect_right(ends, inside)
        return units[k], inside - (ends[k - 1] if k else 0)


@lru_cache(maxsize=512)
def _epoch(sizes: tuple[int, ...], window: int, key64: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Order of the non-empty units in one epoch, and the first offset of each window of them."""
    order = tuple(u for u in permutation(len(sizes), key64) if sizes[u])
    totals = [sum(sizes[u] for u in order[i : i + window]) for i in range(0, len(order), window)]
    return order, tuple(accumulate([0, *totals[:-1]]))
