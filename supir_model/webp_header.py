"""The header of a WebP file (RFC 9649), without Pillow, which makes room for all of its pixels when it opens one.

Only what is ordinary is read here: one still picture, complete, its chunks in their order. Of anything else Pillow says what is wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

FLAGS = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}  # of VP8X, of which chunks there are
ALPHA = 0x10  # the picture's own matter, and that of its chunk
BEFORE_PICTURE = {b"ICCP", b"ALPH"}
AFTER_PICTURE = {b"EXIF", b"XMP "}
MOST_CHUNKS = 6  # VP8X, the picture, and one of each beside it; a hostile file holds millions of empty ones
INFO = {b"ICCP": "icc_profile", b"EXIF": "exif", b"XMP ": "xmp"}


@dataclass(frozen=True, kw_only=True)
class WebpHeader:
    """`width` and `height` in pixels; `info` holds what stands beside the picture, under Pillow's names."""

    width: int
    height: int
    info: dict[str, bytes] = field(default_factory=dict)


def read_header(data: bytes | memoryview) -> WebpHeader | None:
    """None for what is no WebP file, and for one that is animated, cut or out of the ordinary."""
    if len(data) < 20 or bytes(data[:4]) != b"RIFF" or bytes(data[8:12]) != b"WEBP":
        return None
    end = 8 + int.from_bytes(data[4:8], "little")
    chunks = list(islice(_chunks(data, end), MOST_CHUNKS)) if end <= len(data) else []
    if not chunks or chunks[-1][2] != end:
        return None
    kind, first, _, last = chunks[0]
    if kind in PICTURES:
        size = PICTURES[kind](data[first:last])
        return WebpHeader(width=size[0], height=size[1]) if size and len(chunks) == 1 else None
    return _extended(data, chunks) if kind == b"VP8X" else None


Chunk = tuple[bytes, int, int, int]
"""(name, where its payload begins, where the next chunk begins, where its payload ends)."""


def _chunks(data: bytes | memoryview, end: int) -> Iterator[Chunk]:
    """Those that lie whole before `end`; an odd payload is followed by one byte."""
    at = 12
    while at + 8 <= end:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        behind = at + 8 + size + size % 2
        if behind > end:
            return
        yield bytes(data[at : at + 4]), at + 8, behind, at + 8 + size
        at = behind


def _extended(data: bytes | memoryview, chunks: list[Chunk]) -> WebpHeader | None:
    """A canvas, with chunks around the one picture that fills it."""
    _, first, _, last = chunks[0]
    names = [name for name, *_ in chunks[1:]]
    pictures = [name for name in names if name in PICTURES]
    told = sum(FLAGS.get(name, 0) for name in names)
    if last - first != 10 or data[first] & ~ALPHA != told or len(pictures) != 1 or len(set(names)) != len(names):
        return None
    place = names.index(pictures[0])
    if not set(names[:place]) <= BEFORE_PICTURE or not set(names[place + 1 :]) <= AFTER_PICTURE:
        return None
    payloads = {name: data[begin:end] for name, begin, _, end in chunks[1:]}
    size = tuple(1 + int.from_bytes(data[at : at + 3], "little") for at in (first + 4, first + 7))
    if PICTURES[pictures[0]](payloads[pictures[0]]) != size:
        return None
    return WebpHeader(width=size[0], height=size[1], info={INFO[name]: bytes(payloads[name]) for name in INFO if payloads.get(name)})


def _lossy_size(payload: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height) of a VP8 key frame (RFC 6386, 9.1)."""
    if len(payload) < 10 or bytes(payload[3:6]) != b"\x9d\x01\x2a":
        return None
    tag = int.from_bytes(payload[:3], "little")
    shown, profile, is_key = tag >> 4 & 1, tag >> 1 & 7, not tag & 1
    width, height = (side & 0x3FFF for side in struct.unpack("<HH", payload[6:10]))
    ordinary = is_key and shown and profile <= 3 and tag >> 5 < len(payload) and width and height
    return (width, height) if ordinary else None


def _lossless_size(payload: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height) of a VP8L picture (RFC 9649, 3.4)."""
    if len(payload) < 5 or payload[0] != 0x2F:
        return None
    bits = int.from_bytes(payload[1:5], "little")
    return None if bits >> 29 else (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))


PICTURES = {b"VP8 ": _lossy_size, b"VP8L": _lossless_size}
