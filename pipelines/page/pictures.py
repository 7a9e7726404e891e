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
STRIP_QUALITY = 94  # choice: of pictures that are compared; JPEG's own faults must not show
STRIP_PX = 512  # choice: longer side of compared pictures


def embed(data: bytes, alt: str, *, longer_px: int = THUMBNAIL_PX, quality: int = QUALITY) -> Picture:
    """Encoded bytes of any supported format as an upright sRGB JPEG inside the page. Raises ImageError."""
    from supir_model import images

    return embed_rgb(images.decode(data).rgb_HWC, alt, longer_px=longer_px, quality=quality)


def embed_compared(data: bytes, alt: str) -> Picture:
    """A picture whose pixels will be looked at closely."""
    return embed(data, alt, longer_px=STRIP_PX, quality=STRIP_QUALITY)


def embed_rgb(rgb_HWC: NDArray[uint8], alt: str, *, longer_px: int, quality: int) -> Picture:
    """Pixels as a JPEG inside the page, shrunk if they are larger than `longer_px`."""
    from supir_model import images

    height, width = rgb_HWC.shape[:2]
    scale = min(1.0, longer_px / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    subsampling = 0 if quality >= STRIP_QUALITY else 2
    jpeg = images.encode_jpeg(images.resize(rgb_HWC, height, width), quality=quality, subsampling=subsampling)
    return Picture(src="data:image/jpeg;base64," + base64.b64encode(jpeg).decode(), alt=alt, width=width, height=height)
