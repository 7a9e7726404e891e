"""The first rows of a JPEG, without decoding what lies below them.

A sequential JPEG (ITU-T T.81) holds its picture as rows of blocks from top to bottom, and a decoder reads as many of them as the header
promises. So a copy of the file whose header promises fewer is decoded to the first rows of the same picture, pixel for pixel, by any
decoder. No pixel depends on more than the next row of blocks (chroma is interpolated across their border), so one row of them more is
asked for. The end marker is left out: where the decoder runs out of data before it has its rows, it refuses the file instead of filling up.
"""

from __future__ import annotations

BLOCK_PX = 8
FRAMES = (0xC0, 0xC1)  # baseline and extended, Huffman: one scan may hold the whole picture
RESTARTS = 0xDD
SCAN = 0xDA
OTHER_FRAMES = (0xC2, 0xC3, *range(0xC5, 0xD0))  # progressive, lossless, hierarchical, arithmetic
END = b"\xff\xd9"  # stands in no scan: behind 0xff there is a 0


def with_fewer_rows(data: bytes | memoryview, rows: int) -> bytearray | None:
    """A copy of a JPEG that is decoded to at least `rows` (pixels) of its first rows.

    None where the whole file must be decoded: progressive ones and others in several scans; with restart markers, of which a decoder would
    complain that it met them behind its last row; broken headers; no end marker; and where there would be no row less.
    """
    data = memoryview(data).cast("B")  # Arrow's are of signed bytes
    try:
        places = _frame_and_scan(data)
    except IndexError:
        return None
    if places is None:
        return None
    frame, scan = places
    height = int.from_bytes(data[frame + 5 : frame + 7])
    row_px = BLOCK_PX * max(data[frame + 11 + 3 * i] & 15 for i in range(data[frame + 9]))
    promised = (-(-rows // row_px) + 1) * row_px
    if promised >= height:  # a height of 0 stands behind the scan
        return None
    copy = bytearray(data)
    copy[frame + 5 : frame + 7] = promised.to_bytes(2)
    end = copy.find(END, scan)  # other pictures may lie behind it
    if end < 0:
        return None
    del copy[end:]
    return copy


def _frame_and_scan(data: memoryview) -> tuple[int, int] | None:
    """Where the markers of the frame and of the scan stand in a file that is one scan without restarts."""
    at, frame = 2, None
    while data[at] == 0xFF:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == SCAN:
            return (frame, at) if frame is not None and data[at + 4] == data[frame + 9] > 0 else None
        if marker in OTHER_FRAMES or (marker == RESTARTS and any(data[at + 4 : at + 6])):
            return None
        frame = at if marker in FRAMES else frame
        at += 2 + size
    return None
