"""Near-duplicates among tens of millions of hashes, in numpy: memory grows with the hashes, never with the number of pairs.

A hash is cut into 16 bands of 16 bits. Two hashes are compared when they agree in one band (so all pairs within 15 bits are, and of those
farther apart a share that docs/results/duplicates.md gives), and are near when they differ in `radius` bits at most. In a crowded band,
where more than CROWD hashes agree, each is compared with the best CROWD of them, and with those that agree in the next band too; so a
million pictures that look alike cost no more than others. All of this is a function of the hashes and their ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.hashes import HASH_BITS, distance, mirrored

BANDS = 16
CROWD = 2048  # choice: seven times a full bucket of 20 million hashes
CHUNK = 16384  # choice: hashes compared at a time; they stay in the cache
MOST_PAIRS = 20_000_000  # choice: held as two int64 for the rows that the first pass leaves open
DEEPEST = 4  # bands that are joined in a crowd: 64 bits
Pairs = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Forms:
    """Hashes of rows, best first. `own_N4`; `crops`: further words of the same shape, of other forms of the same pictures."""

    own_N4: NDArray[Any]
    crops: tuple[NDArray[Any], ...] = ()

    def take(self, rows: NDArray[Any]) -> Forms:
        return Forms(own_N4=self.own_N4[rows], crops=tuple(one[rows] for one in self.crops))


def near_losers(forms: Forms, radius: int) -> Iterator[tuple[int, int]]:
    """(loser, winner), positions in rows that are sorted from the best to the worst.

    From the best to the worst, a row is kept unless a kept one is near: the hash of one, mirrored or not, to that of the other, or to
    that of a centre crop of the other. The winner is the best of the kept ones that are near.
    """
    if not 0 <= radius < HASH_BITS:
        raise ValueError(f"near_radius is {radius}, expected 0 to {HASH_BITS - 1} bits")
    keys = np.ascontiguousarray(forms.own_N4).view(f"V{HASH_BITS // 8}").ravel()
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    distinct = np.sort(first)  # the best row of every hash; others share its fate
    winner = _resolve(forms.take(distinct), radius)
    rank_of = np.searchsorted(distinct, first)[group.ravel()]
    del keys, group
    for row in np.flatnonzero((winner[rank_of] >= 0) | (distinct[rank_of] != np.arange(len(rank_of)))).tolist():
        one = rank_of[row]
        yield row, int(distinct[winner[one]] if winner[one] >= 0 else distinct[one])


def _resolve(forms: Forms, radius: int) -> NDArray[Any]:
    """For each of distinct hashes, best first, the position of the winner, or -1 for what is kept."""
    count = len(forms.own_N4)
    winner = np.full(count, -1)
    alive = np.arange(count)  # kept or not decided
    undecided = np.arange(count)
    while len(undecided):
        found = None if len(undecided) == count else _all_better(forms, undecided, alive, radius)
        if found is not None:
            _decide_in_order(found, winner)
            break
        undecided = _decide_by_first(_first_better(forms, undecided, alive, radius), undecided, winner)
        alive = np.flatnonzero(winner < 0)
    return winner


def _decide_by_first(better: NDArray[Any], undecided: NDArray[Any], winner: NDArray[Any]) -> NDArray[Any]:
    """Decide who is near to nothing better, and who is near to what is kept; the rest is returned."""
    is_open = np.zeros(len(winner), dtype=bool)
    is_open[undecided[better[undecided] >= 0]] = True
    for row in np.flatnonzero(is_open).tolist():  # in rank order: what is better is decided before
        one = better[row]
        if not is_open[one] and winner[one] < 0:
            winner[row] = one
            is_open[row] = False
    return np.flatnonzero(is_open)


def _decide_in_order(pairs: Pairs, winner: NDArray[Any]) -> None:
    worse, better = pairs
    order = np.lexsort((better, worse))
    for row, one in zip(worse[order].tolist(), better[order].tolist()):
        if winner[row] < 0 and winner[one] < 0:  # `one` is better than `row`, so it is decided
            winner[row] = one


def _first_better(forms: Forms, rows: NDArray[Any], alive: NDArray[Any], radius: int) -> NDArray[Any]:
    """For each row the best one of `alive` that is near and better than it, or -1."""
    best = np.full(len(forms.own_N4), len(forms.own_N4))
    for left, right in _views(forms, rows, alive):
        for lefts, rights in matches(left, right, radius, ranks=(rows, alive), first=True):
            np.minimum.at(best, rows[lefts], alive[rights])
    best[best == len(best)] = -1
    return best


def _all_better(forms: Forms, rows: NDArray[Any], alive: NDArray[Any], radius: int) -> Pairs | None:
    """Every (row, better one that is near); None when they are too many to hold."""
    worse, better, held = [], [], 0
    for left, right in _views(forms, rows, alive):
        for lefts, rights in matches(left, right, radius, ranks=(rows, alive)):
            worse.append(rows[lefts])
            better.append(alive[rights])
            held += len(lefts)
            if held > MOST_PAIRS:
                return None
    return (np.concatenate(worse), np.concatenate(better)) if worse else (np.zeros(0, int), np.zeros(0, int))


def _views(forms: Forms, rows: NDArray[Any], alive: NDArray[Any]) -> Iterator[Pairs]:
    """What is compared with what: one view in memory at a time."""
    left, right = forms.own_N4[rows], forms.own_N4[alive]
    yield left, right
    yield left, mirrored(right)
    for crop in forms.crops:
        yield left, crop[alive]
        yield crop[rows], right


def matches(left_N4: NDArray[Any], right_N4: NDArray[Any], radius: int, *, ranks: Pairs | None = None, first: bool = False,
            crowd: int = CROWD) -> Iterator[Pairs]:
    """(positions in left, positions in right) of hashes that agree in a band and differ in `radius` bits at most; some come again.

    `right_N4` is sorted from the best to the worst. With `ranks` (of both sides; smaller is better) only better ones are told; with
    `first` only the best one in each band.
    """
    bands = np.ascontiguousarray(left_N4).view(np.uint16), np.ascontiguousarray(right_N4).view(np.uint16)
    for band in range(BANDS):
        rows: Pairs = np.arange(len(left_N4)), np.arange(len(right_N4))
        keys: Pairs = bands[0][:, band], bands[1][:, band]
        for depth in range(1, DEEPEST + 1):
            bucket = _Buckets(keys[1], rows[1])
            low, high = bucket.find(keys[0])
            yield from _compare(left_N4, right_N4, radius, rows[0], bucket.members, low, np.minimum(high - low, crowd), ranks, first)
            crowded = high - low > crowd
            if not crowded.any():
                break
            kept = crowded, np.isin(keys[1], np.unique(keys[0][crowded]))
            rows = rows[0][kept[0]], rows[1][kept[1]]
            keys = tuple(key[keep].astype(np.uint64) << np.uint64(16) | words[some, (band + depth) % BANDS]
                         for key, keep, words, some in zip(keys, kept, bands, rows))  # type: ignore[assignment]


class _Buckets:
    """Rows grouped by key; inside a group in their order."""

    def __init__(self, keys: NDArray[Any], rows: NDArray[Any]) -> None:
        order = np.argsort(keys, kind="stable")
        self.keys, self.members = keys[order], rows[order]

    def find(self, keys: NDArray[Any]) -> Pairs:
        """Where the group of each key begins and ends in `members`."""
        return np.searchsorted(self.keys, keys, "left"), np.searchsorted(self.keys, keys, "right")


def _compare(left_N4: NDArray[Any], right_N4: NDArray[Any], radius: int, rows: NDArray[Any], members: NDArray[Any], low: NDArray[Any],
             count: NDArray[Any], ranks: Pairs | None, first: bool) -> Iterator[Pairs]:
    """Each of `rows` of left with `count` members of right from `low` on. Two words decide for nearly all of them."""
    sorted_words = [right_N4[members, word] for word in (0, 1)]
    by_place = np.argsort(low, kind="stable")
    for begin in range(0, len(rows), CHUNK):
        chunk = by_place[begin:begin + CHUNK]
        chunk = chunk[np.argsort(-count[chunk], kind="stable")]
        words = [left_N4[rows[chunk], word] for word in (0, 1)]
        place, left_over = low[chunk], count[chunk]
        step = 0
        while True:
            n = int(np.searchsorted(-left_over, -step))  # those that have more members than steps were made
            if n == 0:
                break
            at = place[:n] + step
            bits = np.bitwise_count(words[0][:n] ^ sorted_words[0][at]) + np.bitwise_count(words[1][:n] ^ sorted_words[1][at])
            near = np.flatnonzero(bits <= radius)
            if len(near):
                lefts, rights = rows[chunk[near]], members[at[near]]
                good = distance(left_N4[lefts], right_N4[rights]) <= radius
                if ranks is not None:
                    good &= ranks[1][rights] < ranks[0][lefts]
                yield lefts[good], rights[good]
                if first and good.any():  # members stand in their order: what comes later is worse
                    stay = np.ones(len(chunk), dtype=bool)
                    stay[near[good]] = False
                    chunk, words = chunk[stay], [word[stay] for word in words]
                    place, left_over = place[stay], left_over[stay]
            step += 1
