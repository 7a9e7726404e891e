"""Texts in nearly the same words: MinHash (Broder 1997) finds candidates, the runs of words that two share decide.

Texts may come from a stream of any length: what is kept of each are hashes, 4 bytes a word and 128 bytes, in files under TMPDIR, and
76 bytes in memory (docs/results/near_captions.md). A text is compared with one of each of its 16 buckets, so time grows with their number.

Legend: N texts, R runs of words (of a batch of texts, one text after the other), H hash functions.
"""

from __future__ import annotations

import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN_WORDS = 3  # choice: shorter runs are shared by captions of different pictures
NEAR = 0.7  # choice: of all runs of two texts, the share that both have
BANDS, ROWS = 16, 4  # texts that share half of their runs meet in a band with probability 0.64, of NEAR with 0.99
AT_A_TIME = 4096  # choice: texts whose hashes are made together; 300,000 words stay in the cache
WORD = re.compile(r"[^\W\d_]+")  # neither digits nor punctuation
_CHANCE = np.random.default_rng(0).integers(1, 2**63, size=(BANDS * ROWS + RUN_WORDS + ROWS, 2), dtype=np.uint64)
_FACTORS, _OFFSETS = _CHANCE[:, 0] | np.uint64(1), _CHANCE[:, 1]
_OF_RUNS, _OF_BANDS = _FACTORS[BANDS * ROWS:][:RUN_WORDS], _FACTORS[-ROWS:]
UPPER = np.uint64(32)


def heads(texts: Iterable[str]) -> NDArray[np.int64]:
    """(N,): for each text the position of the first text of its group; its own where no earlier one is near.

    A text of a group is near its first one, or near one that is.
    """
    with tempfile.TemporaryDirectory(prefix="supir-texts-") as folder:
        hashes, left = _Hashes(Path(folder)), iter(texts)
        while batch := list(islice(left, AT_A_TIME)):
            hashes.add(batch)
        return hashes.heads()


class _Hashes:
    """The runs of each text and its key in each band, in files."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.bands = folder / "runs", [folder / f"band-{band}" for band in range(BANDS)]
        for path in (self.runs, *self.bands):
            path.touch()
        self.counts: list[NDArray[Any]] = []

    def add(self, texts: Iterable[str]) -> None:
        runs_R, counts_N = runs_of(texts)
        _append(self.runs, runs_R)
        self.counts.append(counts_N)
        for path, keys_N in zip(self.bands, keys(signatures(runs_R, counts_N)), strict=True):
            _append(path, keys_N)

    def heads(self) -> NDArray[np.int64]:
        ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *self.counts]))
        head = np.arange(len(ends) - 1)
        if not len(head):
            return head
        runs = np.memmap(self.runs, np.uint32, "r")
        for path in self.bands:
            for place, first in _candidates(np.fromfile(path, np.uint64), head):
                other = int(head[first])  # not after `first`, which stands before `place`: groups make no circle
                if shared(runs[ends[place]:ends[place + 1]], runs[ends[other]:ends[other + 1]]) >= NEAR:
                    head[place] = other
        while (head[head] != head).any():
            head = head[head]
        return head


def _candidates(keys_N: NDArray[Any], head: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(position, first position with its key) of those that have no earlier text yet, in their order."""
    order = np.argsort(keys_N, kind="stable")
    begins = np.flatnonzero(np.concatenate([[True], np.diff(keys_N[order]) != 0]))
    first = np.empty_like(order)
    first[order] = np.repeat(order[begins], np.diff(np.append(begins, len(order))))
    places = np.flatnonzero((first != np.arange(len(first))) & (head == np.arange(len(head))))
    for low in range(0, len(places), AT_A_TIME):
        some = places[low:low + AT_A_TIME]
        yield from zip(some.tolist(), first[some].tolist())


def _append(path: Path, values: NDArray[Any]) -> None:
    with path.open("ab") as file:
        file.write(values.tobytes())


@lru_cache(maxsize=1 << 17)
def _word(word: str) -> int:
    return zlib.crc32(word.encode())


def runs_of(texts: Iterable[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(hashes of runs_R uint32, how many each text has): runs of three words without case; a shorter text is one run."""
    said = [[_word(word) for word in WORD.findall(text.lower())] for text in texts]
    padded = [words + [0] * (RUN_WORDS - len(words)) for words in said]
    counts_N = np.array([len(words) - RUN_WORDS + 1 for words in padded], np.int64)
    words_W = np.array([word for words in padded for word in words], np.uint64)
    starts_N = np.cumsum(counts_N + RUN_WORDS - 1) - (counts_N + RUN_WORDS - 1)
    begins_R = np.repeat(starts_N - (np.cumsum(counts_N) - counts_N), counts_N) + np.arange(counts_N.sum())
    mixed = sum((words_W[begins_R + place] * factor for place, factor in enumerate(_OF_RUNS)), np.zeros(1, np.uint64))
    return (mixed >> UPPER).astype(np.uint32), counts_N  # multilinear hashing (Lemire, Kaser 2014)


def signatures(runs_R: NDArray[Any], counts_N: NDArray[Any]) -> NDArray[Any]:
    """(H, N) uint64: the least hash of each text's runs, for each of 64 functions."""
    starts_N, wide_R = np.cumsum(counts_N) - counts_N, runs_R.astype(np.uint64)
    functions = zip(_FACTORS[:BANDS * ROWS], _OFFSETS)  # multiply-shift (Dietzfelbinger et al. 1997)
    return np.stack([np.minimum.reduceat((wide_R * factor + offset) >> UPPER, starts_N) for factor, offset in functions])


def keys(signatures_HN: NDArray[Any]) -> NDArray[Any]:
    """(bands, N) uint64: equal where all of a band's least hashes are."""
    return (signatures_HN.reshape(BANDS, ROWS, -1) * _OF_BANDS[:, None]).sum(axis=1)


def shared(one_R: NDArray[Any], other_R: NDArray[Any]) -> float:
    """The share of the runs of two texts that both have (Jaccard), 0 to 1."""
    mine, others = set(one_R.tolist()), set(other_R.tolist())
    return len(mine & others) / len(mine | others)
