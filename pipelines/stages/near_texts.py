"""Captions in nearly the same words: MinHash (Broder 1997) finds candidates, the runs of words that two share decide.

Memory is 256 bytes a text; a text is compared with one of each of its 16 buckets, so time grows with the texts, whatever they say.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN_WORDS = 3  # choice: shorter runs are shared by captions of different pictures
NEAR = 0.7  # choice: of all runs of two texts, the share that both have
BANDS, ROWS = 16, 4  # texts that share a run in two of them meet in a band with probability 0.64, of NEAR with 0.99
_CHANCE = np.random.default_rng(0).integers(1, 2**63, size=(2, BANDS * ROWS), dtype=np.uint64)
_FACTORS, _OFFSETS = _CHANCE[0] | np.uint64(1), _CHANCE[1]


def near_groups(texts: Sequence[str]) -> list[list[int]]:
    """Groups of positions of texts that say nearly the same, largest first; a text is near the first of its group, or near one that is."""
    signatures = np.stack([signature(text) for text in texts]) if len(texts) else np.empty((0, BANDS * ROWS), np.uint32)
    head = list(range(len(texts)))  # the first text of each one's group
    for band in range(BANDS):
        keys = np.ascontiguousarray(signatures[:, band * ROWS:(band + 1) * ROWS]).view(f"V{4 * ROWS}").ravel()
        _, first, bucket = np.unique(keys, return_index=True, return_inverse=True)
        for place in np.flatnonzero(first[bucket] != np.arange(len(texts))).tolist():
            other = head[int(first[bucket[place]])]
            if head[place] == place and other != place and similarity(texts[place], texts[other]) >= NEAR:
                head[place] = other
    groups: dict[int, list[int]] = {}
    for place in range(len(texts)):
        groups.setdefault(head[place], []).append(place)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group[0]))


def signature(text: str) -> NDArray[Any]:
    """For each of 64 hash functions the least hash of the text's runs of words, uint32."""
    runs = np.fromiter((zlib.crc32(run.encode()) for run in runs_of(text)), np.uint64)
    if not len(runs):
        return np.zeros(BANDS * ROWS, np.uint32)
    mixed: NDArray[Any] = (runs[:, None] * _FACTORS + _OFFSETS) >> np.uint64(32)  # multiply-shift (Dietzfelbinger et al. 1997)
    return mixed.min(axis=0).astype(np.uint32)


def similarity(one: str, other: str) -> float:
    """The share of the runs of words of two texts that both have (Jaccard), 0 to 1."""
    mine, others = runs_of(one), runs_of(other)
    return len(mine & others) / max(1, len(mine | others)) if mine or others else 1.0


def runs_of(text: str) -> frozenset[str]:
    """Runs of three words, without case, digits and punctuation; a shorter text is one run."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    if not words:
        return frozenset()
    return frozenset(" ".join(words[i:i + RUN_WORDS]) for i in range(max(1, len(words) - RUN_WORDS + 1)))
