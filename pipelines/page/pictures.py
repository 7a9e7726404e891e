"""Pictures as data: addresses, small enough for a page."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from pipelines.page.content import Picture

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

THUMBNAIL_PX = 340  # choice: longer side; sharp enough for a card of 220 CSS pixels
QUALITY = 80  # choice: of thumbnails; a page of 60 stays below 2 MB
DETAIL_PX = 128  # choice: four beside a distribution
STRIP_QUALITY = 94  # choice: of pictures that are compared; JPEG's own faults must not show
STRIP_PX = 512  # choice: longer side of compared pictures


def embed(data: bytes, alt: str, *, longer_px: int = THUMBNAIL_PX, quality: int = QUALITY) -> Picture:
    """Encoded bytes of any supported format as an upright sRGB JPEG inside the page. Raises ImageError."""
    from supir_model import images

    return embed_rgb(images.decode(data).rgb_HWC, alt, longer_px=longer_px, quality=quality)


def embed_compared(data: bytes, alt: str) -> Picture:
    """A picture whose pixels will be looked at closely."""
    return embed(data, alt, longer_px=STRIP_PX, quality=STRIP_QUALITY)


def decoded_or_none(data: bytes) -> NDArray[uint8] | None:
    """rgb_HWC, or None for what does not decode."""
    from supir_model import images

    try:
        return images.decode(data).rgb_HWC
    except images.ImageError:
        return None


def embed_detail(rgb_HWC: NDArray[uint8], alt: str) -> Picture:
    """The square with the most detail in the picture's own pixels: what blur, noise, halos and blocks are judged by."""
    import numpy as np

    steps_HW = np.abs(np.diff(rgb_HWC[::2, :, 1].astype(np.int16), axis=1))
    rows, columns = (max(side // DETAIL_PX, 1) for side in rgb_HWC.shape[:2])
    height, width = min(DETAIL_PX, rgb_HWC.shape[0]), min(DETAIL_PX, rgb_HWC.shape[1])
    cells = steps_HW[: rows * height // 2, : columns * width - 1]
    if not cells.size:
        return embed_rgb(rgb_HWC, alt, quality=STRIP_QUALITY)
    by_row = np.add.reduceat(cells, np.arange(rows) * (height // 2), axis=0, dtype=np.int64)
    sums = np.add.reduceat(by_row, np.arange(columns) * width, axis=1)
    row, column = divmod(int(sums.argmax()), columns)
    square_HWC = rgb_HWC[row * height : (row + 1) * height, column * width : (column + 1) * width]
    return embed_rgb(np.ascontiguousarray(square_HWC), alt, quality=STRIP_QUALITY)


def embed_rgb(rgb_HWC: NDArray[uint8], alt: str, *, longer_px: int = THUMBNAIL_PX, quality: int = QUALITY) -> Picture:
    """Pixels as a JPEG inside the page, shrunk if they are larger than `longer_px`."""
    from supir_model import images

    height, width = rgb_HWC.shape[:2]
    scale = min(1.0, longer_px / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    subsampling = 0 if quality >= STRIP_QUALITY else 2
    jpeg = images.encode_jpeg(images.resize(rgb_HWC, height, width), quality=quality, subsampling=subsampling)
    return Picture(src="data:image/jpeg;base64," + base64.b64encode(jpeg).decode(), alt=alt, width=width, height=height)
