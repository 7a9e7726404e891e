"""Near-duplicates among tens of millions of hashes, in numpy: memory grows with the hashes, never with the number of pairs.

Two pictures are near when the hash of one, flipped or turned or not, and the hash of the other, or of one of its crops, differ in
`radius` bits at most. Pairs come from the tables of pipelines/covering.py: up to EXACT_ROWS all of them, beyond that all within CERTAIN
bits and nearly all the others. In each table hashes with one key stand together, the best first. In a crowd, where more than `crowd` do,
each is compared with the best of them and until one is near; what that leaves open is looked at again when their losers have gone, so a
million pictures that look alike cost no more than others. The tables are independent of each other: threads share them.

P rows that take part, F forms of each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.covering import CHUNK, Part, are_marked, chosen_parts, marked
from pipelines.stages.hashes import HASH_BITS, flipped_distance

CERTAIN = 23  # choice: the tables for all 31 bits are three times as many; beyond 23 these find 98 of 100 (measured)
EXACT_ROWS = 50_000  # choice: seconds
CROWD = 64  # choice: several times what strangers share a key in a table of 20 million
GROWTH = 8  # choice: of a crowd's limit, where a round left something open
MOST_PAIRS = 1 << 18  # choice: compared at a time: 100 bytes each
KEY, OTHER_FORM, ENTRY = np.uint64(2**64 - 2**32), np.uint64(2**31), np.uint64(2**31 - 1)  # a key's 32 bits, a flag, an entry
KEY_UNIT = np.uint64(2**32)
UNDECIDED, KEPT = -2, -1
Array = NDArray[Any]


def near_losers(words_NF4: Array, order: Array, radius: int, threads: int = 0) -> Iterator[tuple[int, int]]:
    """(loser, winner) among the rows of `order`, which names them from the best to the worst; form 0 is the picture itself.

    From the best to the worst, a row is kept unless a kept one is near. The winner is the best of the kept ones that are near.
    `threads` 0: as many as there are cores. Raises ValueError for a radius that is none.
    """
    if not 0 <= radius < HASH_BITS:
        raise ValueError(f"near_radius is {radius}, expected 0 to {HASH_BITS - 1} bits")
    if words_NF4[:, :, 0].size > ENTRY:
        raise ValueError(f"{len(words_NF4)} pictures of {words_NF4.shape[1]} forms: duplicates are sought among {ENTRY} hashes at most; "
                         "select parts of the corpus by themselves")
    keys = np.ascontiguousarray(words_NF4[order, 0]).view(f"V{HASH_BITS // 8}").ravel()
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    distinct = np.sort(first)  # the best row of every hash; others share its fate
    rank_of = np.searchsorted(distinct, first)[group.ravel()]
    del keys, group
    winner = _resolve(words_NF4, order[distinct], radius, threads or os.cpu_count() or 1)
    for place in np.flatnonzero((winner[rank_of] >= 0) | (distinct[rank_of] != np.arange(len(rank_of)))).tolist():
        one = rank_of[place]
        yield int(order[place]), int(order[distinct[winner[one] if winner[one] >= 0 else one]])


def _resolve(words_NF4: Array, rows: Array, radius: int, threads: int) -> Array:
    """For each of distinct hashes, best first, the position of the winner, or KEPT."""
    state = np.full(len(rows), UNDECIDED)
    crowd = CROWD
    with ThreadPoolExecutor(threads) as pool:
        while (state == UNDECIDED).any():
            there = np.flatnonzero(state < 0)
            search = _Search(words_NF4=words_NF4, rows=rows[there], asks=state[there] == UNDECIDED, radius=radius, crowd=crowd)
            _decide(search.run(pool), there, state)
            crowd *= GROWTH
    return state


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Positions in `rows`: `worse` is near to `better`, sorted. `is_short`: not all better ones of a row are told, but the best is;
    `is_open`: there may be better ones of which none is told."""

    worse: Array
    better: Array
    is_short: Array
    is_open: Array


def _decide(found: _Found, there: Array, state: Array) -> None:
    """Who is near to nothing better is kept; who is near to what is kept is lost; what hangs on an unknown stays undecided."""
    clear = (state[there] == UNDECIDED) & ~found.is_open
    clear[found.worse] = False
    state[there[clear]] = KEPT
    begins = np.flatnonzero(np.diff(found.worse, prepend=-1))
    ends = np.append(begins[1:], len(found.worse))
    better = there[found.better]
    for at, low, high in zip(found.worse[begins].tolist(), begins.tolist(), ends.tolist()):  # in rank order
        if found.is_open[at]:
            continue
        fates = state[better[low:high]]
        standing = np.flatnonzero(fates < 0)  # kept or undecided
        if not len(standing):
            state[there[at]] = UNDECIDED if found.is_short[at] else KEPT
        elif fates[standing[0]] == KEPT and (standing[0] == 0 or not found.is_short[at]):
            state[there[at]] = better[low + standing[0]]


@dataclass(frozen=True, kw_only=True)
class _Search:
    """Near pairs among `rows` (best first) of which the worse one `asks`."""

    words_NF4: Array
    rows: Array
    asks: Array
    radius: int
    crowd: int

    def run(self, pool: ThreadPoolExecutor) -> _Found:
        """Table after table."""
        count, forms = len(self.rows), self.words_NF4.shape[1]
        certain = self.radius if count <= EXACT_ROWS else min(self.radius, CERTAIN)
        is_short, is_open = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        pairs = np.zeros(0, np.uint64)  # worse << 32 | better
        for part in chosen_parts(certain, count, count * (forms - 1)):
            values = self._values(part)
            told = [pairs]
            for near, short, left_open in pool.map(partial(self._table, part, values), part.masks):
                told.append(near)
                is_short[short], is_open[left_open] = True, True
            pairs = np.unique(np.concatenate(told))
        worse, better = np.divmod(pairs, KEY_UNIT)
        return _Found(worse=worse.astype(np.int64), better=better.astype(np.int64), is_short=is_short, is_open=is_open)

    def _values(self, part: Part) -> Array:
        """The part of every form of every row, row after row."""
        forms = self.words_NF4.shape[1]
        values = np.empty((len(self.rows), forms), np.uint64)
        for low in range(0, len(self.rows), CHUNK // forms):
            at = slice(low, low + CHUNK // forms)
            values[at] = part.values(self.words_NF4[self.rows[at]])
        return values.ravel()

    def _table(self, part: Part, values: Array, mask: np.uint64) -> tuple[Array, Array, Array]:
        """Pairs, rows that are short, rows that are open. Entry e is form e % F of row e // F."""
        keyed = np.sort(self._keyed(part, values, mask))  # of one key the pictures themselves first, then other forms, each by rank
        same = (keyed[1:] ^ keyed[:-1]) < KEY_UNIT
        in_run = np.append(same, False)
        in_run[1:] |= same
        keyed = keyed[in_run]  # of most keys there is one
        second = np.flatnonzero((keyed[1:] ^ keyed[:-1]) < KEY_UNIT) + 1  # all of a run of one key but its first
        begins = np.diff(second, prepend=-1) != 1
        run, first = np.cumsum(begins) - 1, second[begins] - 1
        is_own = (keyed & OTHER_FORM) == 0
        own_end = first + is_own[first] + np.bincount(run[is_own[second]], minlength=len(first))
        end = first + 1 + np.bincount(run, minlength=len(first))
        entries = (keyed & ENTRY).astype(np.int64)
        own = np.flatnonzero(is_own[second])
        beside = np.flatnonzero((own_end > first) & (end > own_end))  # runs that hold both
        behind = own[(end > own_end)[run[own]]]
        found = [self._compare(entries, second, first[run], own_end[run]),
                 self._compare(entries, np.append(first[beside], second[behind]), np.append(own_end[beside], own_end[run[behind]]),
                               np.append(end[beside], end[run[behind]]))]
        near, short, left_open = map(np.concatenate, zip(*found))
        return near, short, left_open

    def _keyed(self, part: Part, values: Array, mask: np.uint64) -> Array:
        """Key and entry of those that share a key with a picture itself; where only some ask, with a form of one that asks."""
        forms = self.words_NF4.shape[1]
        by_row = values.reshape(-1, forms)
        sought = by_row[:, 0] if self.asks.all() else by_row[self.asks].ravel()
        marks = marked((part.keys(sought[low:low + CHUNK], mask) for low in range(0, len(sought), CHUNK)), len(sought))
        kept = []
        for low in range(0, len(values), CHUNK):
            keys = part.keys(values[low:low + CHUNK], mask)
            some = are_marked(keys, marks)
            other = ((some + low) % forms > 0).astype(np.uint64) * OTHER_FORM
            kept.append((keys[some] & KEY) | other | (some + low).astype(np.uint64))
        return np.concatenate(kept)

    def _compare(self, entries: Array, members: Array, first: Array, end: Array) -> tuple[Array, Array, Array]:
        """Each member with the better ones from `first` to `end`, the best first; where they are a crowd until one is near."""
        forms = self.words_NF4.shape[1]
        rows = entries // forms
        is_crowded = end - first > self.crowd
        near: list[Array] = [np.zeros(0, np.uint64)]
        short: list[Array] = [np.zeros(0, np.int64)]
        left = np.flatnonzero(self.asks[rows[members]])
        for step in range(self.crowd):
            left = left[first[left] + step < end[left]]
            left = left[rows[first[left] + step] < rows[members[left]]]
            if not len(left):
                break
            is_near = np.concatenate([self._near(entries[members[some]], entries[first[some] + step])
                                      for some in np.array_split(left, -(-len(left) // MOST_PAIRS))])
            found = left[is_near]
            near.append(np.unique((rows[members[found]] << 32 | rows[first[found] + step]).astype(np.uint64)))
            short.append(rows[members[found[is_crowded[found]]]])
            left = left[~(is_near & is_crowded[left])]
        else:
            left = left[first[left] + self.crowd < end[left]]
        return np.concatenate(near), np.concatenate(short), rows[members[left]]

    def _near(self, one: Array, other: Array) -> Array:
        """Whether entries are near."""
        forms = self.words_NF4.shape[1]
        words = [self.words_NF4[self.rows[which // forms], which % forms] for which in (one, other)]
        return flipped_distance(*words) <= self.radius
