"""Semantic duplicates: pictures whose embeddings point the same way, in bounded memory (SemDeDup: Abbas et al. 2023).

Spherical k-means puts the rows into clusters of some ten thousand; inside a cluster they are compared block by block. Pairs that fall into
different clusters are not found; up to CLUSTER_ROWS rows there is one cluster, and all are. Vectors may lie in a file (`numpy.memmap`):
one cluster of them is in memory at a time. Floats are summed in other orders on other machines, so pairs within 1e-3 of the threshold may
differ between them.

N rows, D dimensions; `vectors_ND` float16, of length 1, zero where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLUSTER_ROWS = 20_000  # choice: 60 MB of 768 dimensions, and 20,000 comparisons a row
SAMPLE_ROWS = 100  # choice: for each cluster
STEPS = 10  # choice: of k-means; clusters need not be good, only of one kind
BLOCK = 1024  # choice: rows compared at a time
Array = NDArray[Any]


def semantic_losers(vectors_ND: Array, order: Array, similarity: float) -> Iterator[tuple[int, int]]:
    """(loser, winner) among the rows of `order`, which names them from the best to the worst.

    From the best to the worst, a row is kept unless the cosine to a kept one is `similarity` or more; the winner is the best of those.
    Raises ValueError for a similarity that is none.
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"semantic is {similarity}, expected a cosine above 0, up to 1")
    clusters = _clusters(vectors_ND, order)
    for number in range(int(clusters.max(initial=-1)) + 1):
        members = order[clusters == number]
        for loser, winner in _losers(vectors_ND, members, similarity):
            yield int(members[loser]), int(members[winner])


def _clusters(vectors_ND: Array, order: Array) -> Array:
    """The cluster of each row of `order`: a function of the rows and their ranks."""
    count = -(-len(order) // CLUSTER_ROWS)
    if count <= 1:
        return np.zeros(len(order), dtype=int)
    sample = _vectors(vectors_ND, order[np.linspace(0, len(order) - 1, min(count * SAMPLE_ROWS, len(order))).astype(int)])
    centres_KD = sample[np.linspace(0, len(sample) - 1, count).astype(int)]
    for _ in range(STEPS):
        nearest = (sample @ centres_KD.T).argmax(axis=1)
        sums = np.zeros_like(centres_KD)
        np.add.at(sums, nearest, sample)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres_KD = np.where(length > 0, sums / np.maximum(length, 1e-12), centres_KD)
    blocks = (order[low:low + BLOCK] for low in range(0, len(order), BLOCK))
    return np.concatenate([(_vectors(vectors_ND, some) @ centres_KD.T).argmax(axis=1) for some in blocks])


def _losers(vectors_ND: Array, members: Array, similarity: float) -> Iterator[tuple[int, int]]:
    """Positions in `members`: each block with those that were kept before it, then with itself."""
    kept: list[int] = []
    kept_KD = np.empty((len(members), vectors_ND.shape[1]), np.float32)
    for low in range(0, len(members), BLOCK):
        block = _vectors(vectors_ND, members[low:low + BLOCK])
        near = block @ kept_KD[:len(kept)].T >= similarity
        lost = np.asarray(near.any(axis=1))
        for row in np.flatnonzero(lost).tolist():
            yield low + row, kept[int(near[row].argmax())]
        among = np.tril(block @ block.T >= similarity, k=-1)
        for row in np.flatnonzero(~lost).tolist():
            better = np.flatnonzero(among[row] & ~lost)
            if len(better):
                lost[row] = True
                yield low + row, low + int(better[0])
        stay = np.flatnonzero(~lost)
        kept_KD[len(kept):len(kept) + len(stay)] = block[stay]
        kept += (low + stay).tolist()


def _vectors(vectors_ND: Array, rows: Array) -> Array:
    return np.asarray(vectors_ND[rows], dtype=np.float32)
