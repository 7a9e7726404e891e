"""Tables in which near hashes get equal keys: locality-sensitive hashing without false negatives (CoveringLSH: Pagh, SODA 2016).

A hash is cut into parts. Of two that differ in sum(t + 1) - 1 bits, one part differs in t bits at most (pigeonhole). There bit b has a
vector m(b) of t + 1 bits, not zero, and table v looks at the bits with an odd inner product <m(b), v>. The vectors of the bits in which
two hashes differ span at most t dimensions, so one v is orthogonal to all of them: in that table the two have one key. What lies farther
apart is found with a probability that falls slowly (docs/results/duplicates.md).

A flip complements two of the four words of a hash (stages/hashes.py): of a key's four forms the smallest stands for all.
E hashes, `words_E4`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.hashes import HASH_BITS, WORDS

MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: its multiples spread over the upper bits (Knuth, TAOCP 6.4)
CHUNK = 1 << 15  # choice: keys made at a time; they stay in the cache
SPARE_BITS, MOST_MARK_BITS = 6, 31  # measured: the least time at 1 and 4 million; by chance one in 64 to 128 looks marked; 256 MB at most
FEWEST_PARTS, MOST_PARTS = 4, 8  # a part of four times 16 bits fills a uint64; keys of 32 bits, and of 16
LOOK_NS, SORT_NS, PAIR_NS = 13, 60, 250  # measured at a million: a hash looked up, one sorted, a pair compared (memory far apart)


@dataclass(frozen=True, kw_only=True)
class Part:
    """`width` bits from `shift` on of each word, and the bits that its tables look at."""

    shift: int
    width: int
    masks: tuple[np.uint64, ...]

    def values(self, words_E4: NDArray[Any]) -> NDArray[Any]:
        """uint64: the bits of the part, word after word."""
        shift, keep = np.uint64(self.shift), np.uint64(2**self.width - 1)
        found = (words_E4[..., 0] >> shift) & keep
        for word in range(1, WORDS):
            found |= ((words_E4[..., word] >> shift) & keep) << np.uint64(word * self.width)
        return found

    def keys(self, values_E: NDArray[Any], mask: np.uint64) -> NDArray[Any]:
        """uint64: equal for values that agree in the bits of a mask, flipped or not; the upper bits spread best."""
        across, down = (np.uint64(sum((2**self.width - 1) << word * self.width for word in words)) for words in ((0, 2), (0, 1)))
        keys = values_E & mask
        keys = np.minimum(keys, keys ^ (across & mask))
        other = keys ^ (down & mask)
        keys = np.minimum(keys, np.minimum(other, other ^ (across & mask)))
        keys *= MIX
        return keys


@cache
def parts(count: int, certain: int) -> tuple[Part, ...]:
    """A cut into `count` parts whose tables find all that differ in `certain` bits at most."""
    widths = [HASH_BITS // WORDS // count + (n < HASH_BITS // WORDS % count) for n in range(count)]
    vectors = [(certain + 1) // count + (n < (certain + 1) % count) for n in range(count)]
    return tuple(Part(shift=sum(widths[:n]), width=width, masks=_masks(WORDS * width, bits))
                 for n, (width, bits) in enumerate(zip(widths, vectors)) if bits)


@cache
def _masks(width: int, bits: int) -> tuple[np.uint64, ...]:
    vectors = [1 + place % (2**bits - 1) for place in range(width)]
    masks = (sum(1 << place for place, one in enumerate(vectors) if (one & table).bit_count() % 2) for table in range(1, 2**bits))
    return tuple(np.uint64(mask) for mask in masks if mask)


def chosen_parts(certain: int, indexed: int, looked_up: int) -> tuple[Part, ...]:
    """The cut that costs least where `looked_up` hashes are sought among `indexed`."""
    def cost(count: int) -> float:
        chance = 2.0 ** -(HASH_BITS / count / 2 - 2)  # that two strangers have one key
        shared = min(1.0, indexed * chance)
        tables = sum(len(one.masks) for one in parts(count, certain))
        return tables * (LOOK_NS * looked_up + SORT_NS * (indexed + shared * looked_up) + PAIR_NS * looked_up * indexed * chance)

    return parts(min(range(FEWEST_PARTS, MOST_PARTS + 1), key=cost), certain)


def marked(chunks: Iterable[NDArray[Any]], count: int) -> NDArray[Any]:
    """uint8 (2**n / 8,), a bit for each value of the upper n bits of a key, set for those of these `count` keys; n so that few others fall
    on them. A bit each, not a byte: what is looked up at random stays in the cache."""
    bits = min(max(count.bit_length() + SPARE_BITS, 10), MOST_MARK_BITS)
    marks = np.zeros(1 << (bits - 3), np.uint8)
    for keys in chunks:
        place = keys >> np.uint64(64 - bits)
        bit = place.astype(np.uint8) & 7
        for one in range(8):
            marks[place[bit == one] >> 3] |= 1 << one
    return marks


def are_marked(keys: NDArray[Any], marks: NDArray[Any]) -> NDArray[Any]:
    """Positions of the keys that are, or look like, some of the marked ones."""
    place = keys >> np.uint64(62 - len(marks).bit_length())
    found = marks.take(place >> 3) >> (place.astype(np.uint8) & 7)
    return np.flatnonzero((found & 1).view(np.bool_))
