"""Counter-based random streams: what is drawn depends on (seed, purpose, position) and on nothing else.

Not on the order of calls, the batch, the worker or a restart. A purpose has its own stream, so a new draw in one never shifts another.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from statistics import NormalDist

import numpy as np

LEVELS = 1 << 16  # choice: normal deviates take 65,536 equiprobable values (|z| <= 4.3); the picture has 256
SLOTS = 512  # a Poisson of mean 256 exceeds 511 with probability 1e-43
SLOT_SHIFT = np.uint32(23)  # a 32-bit draw: 9 bits choose the slot, 23 decide between it and its alias
FRACTIONS = 1 << 23
ALIAS_BITS = np.uint32(9)
ALIAS_MASK = np.uint32(SLOTS - 1)
BLOCK = 1 << 16  # measured: what is held for so many draws stays in the processor's cache


def stream(seed: int, purpose: str, position: int) -> np.random.Generator:
    """A numpy generator over Philox, keyed by 128 bits of a hash of its three coordinates."""
    digest = hashlib.blake2b(f"{seed}|{purpose}|{position}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)))


def raw_words(rng: np.random.Generator, count: int, dtype: type[np.uint16] | type[np.uint32]) -> np.ndarray:
    """`count` unsigned integers cut from the generator's raw 64-bit words."""
    per_word = 8 // np.dtype(dtype).itemsize
    words: np.ndarray = rng.bit_generator.random_raw(-(-count // per_word))
    return words.astype("<u8", copy=False).view(np.dtype(dtype).newbyteorder("<"))[:count]


@lru_cache(maxsize=1)
def _normal_quantiles() -> np.ndarray:
    """float32 (65536,): midpoints of equiprobable intervals, rescaled to unit variance."""
    inverse = NormalDist().inv_cdf
    upper = np.array([inverse((i + 0.5) / LEVELS) for i in range(LEVELS // 2, LEVELS)])
    table = np.concatenate([-upper[::-1], upper])
    return np.asarray(table / table.std(), dtype=np.float32)


def standard_normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """float32 deviates of mean 0 and standard deviation `scale`: one table look-up each, four times faster than the ziggurat."""
    index = raw_words(rng, int(np.prod(shape)), np.uint16)
    return (_normal_quantiles() * np.float32(scale)).take(index).reshape(shape)


def _alias_row(probability_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's alias table of one discrete distribution: thresholds in 23-bit units, and the alias of each slot."""
    scaled = probability_K * len(probability_K)
    keep, alias = np.ones(len(scaled)), np.arange(len(scaled))
    small = [k for k, p in enumerate(scaled) if p < 1.0]
    large = [k for k, p in enumerate(scaled) if p >= 1.0]
    while small and large:
        low, high = small.pop(), large[-1]
        keep[low], alias[low] = scaled[low], high
        scaled[high] -= 1.0 - scaled[low]
        if scaled[high] < 1.0:
            small.append(large.pop())
    return np.rint(keep * FRACTIONS).astype(np.uint32), alias.astype(np.uint32)


@lru_cache(maxsize=9)
def _poisson_table(quanta: int) -> np.ndarray:
    """uint32 (256 * SLOTS,): for the 256 levels of an 8-bit picture, the Poisson distribution of mean level / 255 * quanta.

    An alias table for each level, one entry a slot: the threshold above 9 bits of alias. A slot that is always kept is its own alias.
    """
    log_factorial_K = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, SLOTS)))])
    counts_K = np.arange(SLOTS)
    table = np.zeros((256, SLOTS), np.uint32)
    for level in range(256):
        mean = level / 255.0 * quanta
        log_p_K = counts_K * np.log(mean) - mean - log_factorial_K if mean > 0 else np.where(counts_K == 0, 0.0, -np.inf)
        probability_K = np.exp(log_p_K)
        keep, alias = _alias_row(probability_K / probability_K.sum())
        alias = np.where(keep < FRACTIONS, alias, counts_K.astype(np.uint32))
        table[level] = (np.minimum(keep, FRACTIONS - 1) << ALIAS_BITS) | alias
    return table.ravel()


def poisson_of_levels(rng: np.random.Generator, levels: np.ndarray, quanta: int) -> np.ndarray:
    """uint8 levels of any shape -> float32 Poisson counts of mean level / 255 * quanta (quanta <= 256).

    Exact to 23 bits, and three times faster than a general Poisson generator, because a picture has 256 means at most.
    """
    assert 1 <= quanta <= 256, f"{quanta} quanta: the tables hold means up to 256"
    table, flat = _poisson_table(quanta), levels.ravel()
    draw = raw_words(rng, flat.size, np.uint32)
    counts = np.empty(flat.size, np.float32)
    for first in range(0, flat.size, BLOCK):
        block = slice(first, first + BLOCK)
        slot = draw[block] >> SLOT_SHIFT
        index = flat[block].astype(np.intp) * SLOTS
        index |= slot
        entry = table.take(index, mode="clip")  # never clipped; without the check of bounds
        kept = draw[block] << ALIAS_BITS < entry & ~ALIAS_MASK  # the draw's 23 bits against the entry's
        counts[block] = np.where(kept, slot, entry & ALIAS_MASK)
    return counts.reshape(levels.shape)
