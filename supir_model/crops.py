"""A square crop of an encoded picture, without the pixels that it has no use for.

`decode_crop(data, crop)` is `crop.cut(crop.decode_whole(data))`, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from supir_model import images

BICUBIC_PX = 2.0  # how far Pillow's filter reaches, in pixels of the smaller picture


@dataclass(frozen=True, kw_only=True)
class Crop:
    """`size_px` square of a picture whose short side was made `short_side_px` (None: only if it is smaller than the crop).

    `u_y`, `u_x` in [0, 1] place it, `mirrored` exchanges its left and right: as in `images.crop`.
    """

    size_px: int
    short_side_px: int | None = None
    u_y: float = 0.5
    u_x: float = 0.5
    mirrored: bool = False

    def place(self, height: int, width: int) -> Place:
        """Where it lies in an upright picture of this size."""
        resized = images.short_side_size(height, width, self._short_side(height, width))
        top, left = (round(u * (side - self.size_px)) for u, side in zip((self.u_y, self.u_x), resized, strict=True))
        return Place(*resized, top, left)

    def decode_whole(self, data: images.Encoded) -> np.ndarray[Any, Any]:
        """The resized picture that `cut` takes, for many crops of one picture."""
        rgb_HWC = images.decode(data).rgb_HWC
        return images.resize_short_side(rgb_HWC, self._short_side(*rgb_HWC.shape[:2]))

    def cut(self, resized_HWC: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """From the whole picture as it was resized."""
        return images.crop(resized_HWC, self.size_px, u_y=self.u_y, u_x=self.u_x, mirrored=self.mirrored)

    def _short_side(self, height: int, width: int) -> int:
        return max(self.short_side_px or min(height, width), self.size_px)


class Place(NamedTuple):
    """Of a crop: the size of the resized picture and its first row and column there, in pixels."""

    height: int
    width: int
    top: int
    left: int


def decode_crop(data: images.Encoded, crop: Crop) -> np.ndarray[Any, Any]:
    """uint8 HWC, contiguous, of a file's bytes. Raises ImageError as `images.decode`, but not for damage below what it looks at."""

    def last_row(height: int, width: int) -> int:
        return _rows(crop.place(height, width), height, crop.size_px)[1]

    decoded = images.decode(data, rows=last_row)
    height, width = decoded.info.upright_size
    place = crop.place(height, width)
    if (height, width) == (place.height, place.width):
        window_HWC = decoded.rgb_HWC[place.top : place.top + crop.size_px, place.left : place.left + crop.size_px]
    else:
        window_HWC = _resized_window(decoded.rgb_HWC, height, place, crop.size_px)
    return images.crop(window_HWC, crop.size_px, mirrored=crop.mirrored)


def _rows(place: Place, height: int, size_px: int) -> tuple[int, int]:
    """The first row of the original that a crop depends on, and the one behind the last."""
    if place.height == height:
        return place.top, place.top + size_px
    scale = height / place.height
    reach = BICUBIC_PX * max(scale, 1.0) + 0.5
    return max(0, int((place.top + 0.5) * scale - reach)), min(height, int((place.top + size_px - 0.5) * scale + reach))


def _resized_window(rgb_HWC: np.ndarray[Any, Any], height: int, place: Place, size_px: int) -> np.ndarray[Any, Any]:
    """`images.resize` of the whole picture, at the crop: Pillow resizes rows, rounds, and then columns; each only where it is needed."""
    first, last = _rows(place, height, size_px)
    rows_HWC = images.resize(rgb_HWC[first:last], last - first, place.width)
    columns_HWC = np.zeros((height, size_px, 3), np.uint8)  # its other rows weigh nothing in the crop
    columns_HWC[first:last] = rows_HWC[:, place.left : place.left + size_px]
    return images.resize(columns_HWC, place.height, size_px)[place.top : place.top + size_px]
