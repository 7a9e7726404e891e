"""A perceptual hash of 256 bits that stays when a picture is resized, re-encoded, mirrored or cropped by a few pixels.

The signs of the 16 x 16 lowest frequencies (without the constant ones) of the cosine transform of a picture reduced to 64 x 64: the
layout of PDQ (Facebook, 2019), whose package has no wheels, with signs in the place of "above the median". Mirroring a picture flips
the signs of its odd frequencies and turning it over the diagonal transposes them, so that all eight forms follow from the bits alone.
Arithmetic is exact (whole numbers below 2**53), so every machine finds the same bits.
docs/results/duplicates.md holds what was measured.

H, W pixels; N hashes; a hash is 32 bytes in tables (64 hex digits) and four uint64 words in memory (`words_N4`): the bits of odd
vertical and odd horizontal frequencies, of odd and even, of even and odd, of even and even ones, so that a flip complements two words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.measures.tiles import halved

SIDE_PX = 64  # PDQ: what the transform sees
FREQUENCIES = 16  # PDQ: 1 to 16 in both directions
HASH_BITS = FREQUENCIES**2
WORDS = HASH_BITS // 64
REDUCED_PX = 128  # choice: a picture is reduced once, all its crops are read from that; they may begin between two of its pixels
COSINE_BITS = 14  # 2**14 (cosine) x 2**8 (grey) x 2**6 (sum), and once more: below 2**48
CLEAR = 2.0  # choice: grey levels of an orthonormal coefficient; rounding pixels moves it by 0.3
LEAST_QUALITY = 0.5  # choice: photographs begin at 0.77 (measured), flat pictures lie near 0: their signs are noise
CENTRE_SHARES = (0.96, 0.92)  # choice: the hash itself bears 2 % (measured), so centre crops down to 0.9 are met
CORNER_SHARES = (0.97, 0.94, 0.91)  # measured: with these all corner crops from 0.9 on are met, with two shares there are gaps
PART_SHARES = (0.71, 0.5, 0.36)  # choice: each 0.7 of the one before: of any crop in the middle one of them fills 0.7 to 1 of each side
PARTS = 13  # what `parts` gives
ALL = np.uint64(2**64 - 1)
Span = tuple[float, float]  # from, to, in shares of a side
Box = tuple[Span, Span]  # vertical, horizontal
WHOLE: Span = (0.0, 1.0)


def spans(share: float, places: Iterable[float]) -> list[Span]:
    """Spans of this share of a side; place 0 is its begin, 1 its end."""
    return [(round(place * (1 - share), 6), round(place * (1 - share) + share, 6)) for place in places]


CROPS: tuple[Box, ...] = (*((one, one) for share in CENTRE_SHARES for one in spans(share, [0.5])),
                          *((y, x) for share in CORNER_SHARES for y in spans(share, [0, 1]) for x in spans(share, [0, 1])))


def parts(height: int, width: int) -> tuple[Box, ...]:
    """Where a smaller picture may have been cut out of this one: the squares of the shorter side at both ends and in the middle, smaller
    ones and smaller frames in the middle, and frames in the corners."""
    square = max(round(min(height, width) / max(height, width), 2), 0.01)  # of few values, so that few transforms are made
    middle = {share: spans(share, [0.5])[0] for share in PART_SHARES}
    along = [*spans(square, [0, 0.5, 1]), *(spans(square * share, [0.5])[0] for share in PART_SHARES)]
    squares = zip(along, [WHOLE, WHOLE, WHOLE, *middle.values()])
    corners = ((y, x) for y in spans(PART_SHARES[0], [0, 1]) for x in spans(PART_SHARES[0], [0, 1]))
    upright = ((one, other) if height > width else (other, one) for one, other in squares)
    return (*upright, *((one, one) for one in middle.values()), *corners)


def measure_hashes(grey_HW: NDArray[Any]) -> dict[str, Any]:
    """The columns `phash`, `phash_quality` (0..1), `phash_crops` and `phash_parts` of a picture's luma (uint8), as it is or already
    `halved`."""
    own, *others = _coefficients(grey_HW, ((WHOLE, WHOLE), *CROPS, *parts(*grey_HW.shape)))
    crops, rest = np.stack(others[:len(CROPS)]), np.stack(others[len(CROPS):])
    return {"phash": _to_bytes(own).hex(), "phash_quality": round(_quality(own), 4), "phash_crops": _to_bytes(crops).hex(),
            "phash_parts": _to_bytes(rest).hex()}


def perceptual_hash(grey_HW: NDArray[Any]) -> bytes:
    """32 bytes."""
    return _to_bytes(next(_coefficients(grey_HW, ((WHOLE, WHOLE),))))


def cropped_hashes(grey_HW: NDArray[Any], boxes: Iterable[Box]) -> NDArray[Any]:
    """words_N4 of the boxes of a picture; those that are too flat to be told apart are left out."""
    found = _coefficients(grey_HW, tuple(boxes))
    return to_words(b"".join(_to_bytes(one) for one in found if _quality(one) >= LEAST_QUALITY))


def _coefficients(grey_HW: NDArray[Any], boxes: tuple[Box, ...]) -> Iterator[NDArray[Any]]:
    """For each box whole numbers: the orthonormal cosine transform times 2**28 * 32, frequencies 1..16, vertical ones first."""
    reduced_HW = _reduced(grey_HW)
    vertical = {span: _transform(span) @ reduced_HW for span in dict.fromkeys(one for one, _ in boxes)}
    return (vertical[y] @ _transform(x).T for y, x in boxes)


def _reduced(grey_HW: NDArray[Any]) -> NDArray[Any]:
    """float64 (128, 128)."""
    import cv2

    grey_HW = halved(grey_HW, 4 * REDUCED_PX)
    return np.asarray(cv2.resize(grey_HW, (REDUCED_PX, REDUCED_PX), interpolation=cv2.INTER_AREA), dtype=np.float64)


@cache
def _transform(span: Span) -> NDArray[Any]:
    """(16, 128): a span of the reduced side is averaged to 64 samples and these are transformed."""
    frequency, place = np.arange(1, FREQUENCIES + 1)[:, None], 2 * np.arange(SIDE_PX)[None, :] + 1
    edges = np.linspace(*span, SIDE_PX + 1) * REDUCED_PX
    cells = np.arange(REDUCED_PX)
    overlap = np.clip(np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells), 0, None)
    cosines = np.cos(np.pi * frequency * place / (2 * SIDE_PX)) @ (overlap / overlap.sum(axis=1, keepdims=True))
    return np.asarray(np.round(cosines * 2**COSINE_BITS))


def _quality(coefficients: NDArray[Any]) -> float:
    return float((np.abs(coefficients) >= CLEAR * 2 ** (2 * COSINE_BITS) * SIDE_PX / 2).mean())


def _to_bytes(coefficients: NDArray[Any]) -> bytes:
    return np.packbits(coefficients > 0).tobytes()


# bits

def to_words(data: bytes) -> NDArray[Any]:
    """words_N4 of hashes one after another."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, 8, 2, 8, 2).transpose(0, 2, 4, 1, 3)  # parities first
    return np.packbits(bits.reshape(-1, 64), axis=1).view(np.uint64).reshape(-1, WORDS)


def mirrored(words_N4: NDArray[Any]) -> NDArray[Any]:
    """The hashes of the pictures mirrored left to right: odd horizontal frequencies change their sign."""
    return np.asarray(words_N4 ^ np.array([ALL, 0, ALL, 0], np.uint64))


def turned(words_N4: NDArray[Any]) -> NDArray[Any]:
    """The hashes of the pictures turned over the diagonal; with flips this gives both quarter turns."""
    bits = np.unpackbits(np.ascontiguousarray(words_N4).view(np.uint8).reshape(-1, 8), axis=1).reshape(-1, WORDS, 8, 8)
    bits = bits[:, [0, 2, 1, 3]].swapaxes(2, 3)
    return np.packbits(bits.reshape(-1, 64), axis=1).view(np.uint64).reshape(-1, WORDS)


def distance(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Bits that differ, over the last axis."""
    return np.asarray(np.bitwise_count(one ^ other).sum(axis=-1, dtype=np.int64))


def flipped_distance(one_N4: NDArray[Any], other_N4: NDArray[Any]) -> NDArray[Any]:
    """Bits that differ at the least, the second picture as it is, mirrored, upside down, or both (turned by 180 degrees)."""
    a, b, c, d = np.moveaxis(np.bitwise_count(one_N4 ^ other_N4).astype(np.int16), -1, 0)
    across, down = 64 - a + b + 64 - c, 64 - a + 64 - b + c
    return np.asarray(d + np.minimum(np.minimum(a + b + c, across), np.minimum(down, a + 64 - b + 64 - c)))
