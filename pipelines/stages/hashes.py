"""A perceptual hash of 256 bits that stays when a picture is resized, re-encoded, mirrored or cropped by a few pixels.

The signs of the 16 x 16 lowest frequencies (without the constant ones) of the cosine transform of a picture reduced to 64 x 64: the
layout of PDQ (Facebook, 2019), whose package has no wheels, with signs in the place of "above the median". Mirroring a picture flips
the signs of its odd frequencies and turning it over the diagonal transposes them, so that all eight forms follow from the bits alone.
Arithmetic is exact (whole numbers below 2**53), so every machine finds the same bits.
docs/results/duplicates.md holds what was measured.

H, W pixels; N hashes; a hash is 32 bytes in tables (64 hex digits) and four uint64 words in memory (`words_N4`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE_PX = 64  # PDQ: what the transform sees
FREQUENCIES = 16  # PDQ: 1 to 16 in both directions
HASH_BITS = FREQUENCIES**2
WORDS = HASH_BITS // 64
REDUCED_PX = 256  # choice: crops are cut from a picture reduced once; 1/256 of a side is finer than the hash
CROPS = (0.96, 0.92)  # choice: centre crops in the table; the hash itself bears 2 % (measured), so crops down to 0.9 are met
COSINE_BITS = 14  # 2**14 (cosine) x 2**8 (grey) x 2**6 (sum), and once more: below 2**48
CLEAR = 2.0  # choice: grey levels of an orthonormal coefficient; rounding pixels moves it by 0.3
LEAST_QUALITY = 0.5  # choice: photographs begin at 0.77 (measured), flat pictures lie near 0: their signs are noise
Box = tuple[float, float, float, float]  # top, left, height, width, in shares of the sides


def measure_hashes(grey_HW: NDArray[Any]) -> dict[str, Any]:
    """The columns `phash`, `phash_quality` (0..1) and `phash_crops` of a picture's luma (uint8)."""
    reduced = _reduced(grey_HW)
    coefficients = _coefficients(reduced)
    crops = b"".join(_to_bytes(_coefficients(_cut(reduced, centred(share)))) for share in CROPS)
    quality = float((np.abs(coefficients) >= CLEAR * 2 ** (2 * COSINE_BITS) * SIDE_PX / 2).mean())
    return {"phash": _to_bytes(coefficients).hex(), "phash_quality": round(quality, 4), "phash_crops": crops.hex()}


def perceptual_hash(grey_HW: NDArray[Any]) -> bytes:
    """32 bytes."""
    return _to_bytes(_coefficients(_reduced(grey_HW)))


def _reduced(grey_HW: NDArray[Any]) -> NDArray[Any]:
    import cv2

    return np.asarray(cv2.resize(grey_HW, (REDUCED_PX, REDUCED_PX), interpolation=cv2.INTER_AREA))


def _coefficients(grey_HW: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers: the orthonormal cosine transform times 2**28 * 32, frequencies 1..16, vertical ones first."""
    import cv2

    small_HW = cv2.resize(grey_HW, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float64)
    cosines = _cosines()
    found: NDArray[Any] = cosines @ small_HW @ cosines.T
    return found


@cache
def _cosines() -> NDArray[Any]:
    frequency, place = np.arange(1, FREQUENCIES + 1)[:, None], 2 * np.arange(SIDE_PX)[None, :] + 1
    return np.round(np.cos(np.pi * frequency * place / (2 * SIDE_PX)) * 2**COSINE_BITS)


def _to_bytes(coefficients: NDArray[Any]) -> bytes:
    return np.packbits(coefficients > 0).tobytes()


# forms of a picture

def centred(share: float) -> Box:
    """The box in the middle with this share of both sides."""
    return (1 - share) / 2, (1 - share) / 2, share, share


def _cut(reduced_HW: NDArray[Any], box: Box) -> NDArray[Any]:
    top, left, height, width = (round(part * REDUCED_PX) for part in box)
    return np.ascontiguousarray(reduced_HW[top:top + height, left:left + width])


def boxes(shares: Iterable[float]) -> Iterator[Box]:
    """The whole, and for each share: centre and corner crops of both sides, and crops of one side at its ends and middle."""
    yield 0.0, 0.0, 1.0, 1.0
    for share in shares:
        rest = 1 - share
        yield from ((top * rest, left * rest, share, share) for top, left in ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1)))
        yield from ((place * rest, 0.0, share, 1.0) for place in (0, 0.5, 1))
        yield from ((0.0, place * rest, 1.0, share) for place in (0, 0.5, 1))


def cropped_hashes(grey_HW: NDArray[Any], shares: Iterable[float]) -> NDArray[Any]:
    """words_N4 of the boxes of a picture; those that are too flat to be told apart are left out."""
    reduced = _reduced(grey_HW)
    found = [_coefficients(_cut(reduced, box)) for box in boxes(shares)]
    clear = CLEAR * 2 ** (2 * COSINE_BITS) * SIDE_PX / 2
    return to_words(b"".join(_to_bytes(one) for one in found if (np.abs(one) >= clear).mean() >= LEAST_QUALITY))


# bits

def to_words(data: bytes) -> NDArray[Any]:
    """words_N4 of hashes one after another."""
    return np.frombuffer(data, dtype=np.uint64).reshape(-1, WORDS)


def mirrored(words_N4: NDArray[Any]) -> NDArray[Any]:
    """The hashes of the pictures mirrored left to right."""
    return words_N4 ^ _odd(axis=1)


def eight_forms(words_N4: NDArray[Any]) -> NDArray[Any]:
    """words of shape (8 N, 4): mirrored, turned upside down, over the diagonal, and all together: every flip and quarter turn."""
    flips = [words_N4 ^ mask for mask in (0 * _odd(0), _odd(1), _odd(0), _odd(0) ^ _odd(1))]
    return np.concatenate([*flips, *map(_transposed, flips)])


def _odd(axis: int) -> NDArray[Any]:
    """The bits of the odd frequencies along an axis (0 vertical, 1 horizontal), one hash."""
    odd = np.arange(1, FREQUENCIES + 1) % 2 == 1
    bits = np.broadcast_to(odd[:, None] if axis == 0 else odd[None, :], (FREQUENCIES, FREQUENCIES))
    return to_words(np.packbits(bits).tobytes())


def _transposed(words_N4: NDArray[Any]) -> NDArray[Any]:
    bits = np.unpackbits(np.ascontiguousarray(words_N4).view(np.uint8).reshape(len(words_N4), -1), axis=1)
    turned = bits.reshape(-1, FREQUENCIES, FREQUENCIES).swapaxes(1, 2).reshape(len(words_N4), -1)
    return to_words(np.packbits(turned, axis=1).tobytes())


def distance(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Bits that differ, over the last axis."""
    return np.asarray(np.bitwise_count(one ^ other).sum(axis=-1, dtype=np.int64))
