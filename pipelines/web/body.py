"""Reading an answer's body: cut as soon as it is too large or no photograph."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from pipelines.refusal import Refused

HEAD_BYTES = 12  # enough for every signature below
READABLE = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"BM")  # what supir_model.images.FORMATS begin with, WebP apart
READ_BYTES = 64 * 2**20  # more than one chunk can bring
ENCODINGS = ("gzip", "x-gzip", "deflate")


@dataclass
class Room:
    """Bytes that a worker may hold of one shard, whatever the servers send."""

    most_bytes: int
    used: int = 0

    def take(self, size_bytes: int) -> None:
        """Raise Refused (shard_full) when there is no room for so many."""
        if self.used + size_bytes > self.most_bytes:
            raise Refused("shard_full", f"this shard's photographs exceed {self.most_bytes} bytes: retry_failed asks again in a new one")
        self.used += size_bytes


async def read_photograph(response: Any, max_bytes: int, room: Room | None = None) -> bytes:
    """The whole body. Raises Refused: too_many_bytes, not_an_image, unsupported_format, content_encoding, truncated."""
    expected = response.content_length
    if expected is not None and expected > max_bytes:
        raise too_many(f"Content-Length says {expected}", max_bytes)
    return await read(response, max_bytes, check_head, room=room)


async def read(response: Any, max_bytes: int, check: Any = None, cut: bool = False, room: Room | None = None) -> bytes:
    """The body, decompressed under the same cap; with `cut` what is beyond the cap is left instead of refused."""
    mine = Room(room.most_bytes if room else max_bytes + READ_BYTES)
    try:
        return await _read(response, max_bytes, check, cut, [mine, *([room] if room else [])])
    except BaseException:
        if room:
            room.used -= mine.used  # what is refused is not held
        raise


async def _read(response: Any, max_bytes: int, check: Any, cut: bool, rooms: list[Room]) -> bytes:
    unpack, is_whole = _unpacker(response.headers.get("Content-Encoding", "").strip().lower())
    chunks: list[bytes] = []
    total = 0
    async for packed in response.content.iter_any():
        chunk = unpack(packed, max_bytes + 1 - total)
        chunks.append(chunk)
        total += len(chunk)
        for room in reversed(rooms):
            room.take(len(chunk))
        if total > max_bytes and cut:
            return b"".join(chunks)
        if total > max_bytes:
            raise too_many(f"more than {max_bytes}", max_bytes)
        if check is not None and total >= HEAD_BYTES:
            check(b"".join(chunks))
            check = None
    data = b"".join(chunks)
    if check is not None:
        check(data)
    if chunks and not is_whole():
        raise Refused("truncated", "the compressed body ends before its end mark", transient=True)
    return data


def _unpacker(encoding: str) -> Any:
    """((compressed bytes, most that may come out) -> bytes, whether that was all of it).

    We ask for `identity`; servers that compress all the same are read.
    """
    if encoding in ("", "identity"):
        return lambda packed, _: packed, lambda: True
    if encoding not in ENCODINGS:
        raise Refused("content_encoding", f"Content-Encoding {encoding[:30]!r} was not asked for and is not read")
    machine = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def unpack(packed: bytes, most: int) -> bytes:
        try:
            return machine.decompress(packed, max(1, most))
        except zlib.error as error:
            raise Refused("truncated", f"the {encoding} body is broken ({error})", transient=True) from error

    return unpack, lambda: machine.eof


def check_head(head: bytes) -> None:
    """Raise Refused unless the first bytes are those of a format that is read."""
    if head.startswith(READABLE) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return
    if not head:
        raise Refused("empty", "the answer has no bytes")
    foreign = head.startswith(b"GIF8") or head[4:8] == b"ftyp" or head[:2] == b"\xff\x0a"
    if foreign:
        raise Refused("unsupported_format", f"first bytes {head[:12]!r}: GIF, AVIF, HEIC and JPEG XL are not read")
    raise Refused("not_an_image", f"first bytes {head[:12]!r}: a web page or another file; the rest was not read")


def too_many(found: str, max_bytes: int) -> Refused:
    """The refusal of what is too large."""
    return Refused("too_many_bytes", f"{found} bytes, at most {max_bytes} are taken: raise max_bytes or leave it out")
