"""Hashes that tests make up, and what comparing all with all says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.hashes import WORDS, flipped_distance, turned

Words = NDArray[Any]


def words(count: int, seed: int = 0) -> Words:
    """Random ones."""
    return np.random.default_rng(seed).integers(0, 2**64, (count, WORDS), dtype=np.uint64)


def flipped(words_N4: Words, bits: int, seed: int = 1) -> Words:
    """Each with some bits changed."""
    rng = np.random.default_rng(seed)
    unpacked = np.unpackbits(np.ascontiguousarray(words_N4).view(np.uint8).reshape(len(words_N4), -1), axis=1)
    for row in unpacked:
        row[rng.choice(256, bits, replace=False)] ^= 1
    return np.packbits(unpacked, axis=1).view(np.uint64)


def forms(own_N4: Words, *crops: Words) -> Words:
    """words_NF4 as corpus_facts has them."""
    return np.stack([own_N4, turned(own_N4), *crops], axis=1)


def brute(words_NF4: Words, radius: int) -> dict[int, int]:
    """What the docstring of near_losers says."""
    kept: list[int] = []
    lost = {}
    for i, mine in enumerate(words_NF4):
        theirs = words_NF4[kept]
        near = np.minimum(flipped_distance(mine[:1, None], theirs.swapaxes(0, 1)).min(axis=0),
                          flipped_distance(mine[:, None], theirs[None, :, 0]).min(axis=0)) <= radius
        if near.any():
            lost[i] = kept[int(near.argmax())]
        else:
            kept.append(i)
    return lost
