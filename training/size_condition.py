"""SDXL's size condition of one training crop (Podell et al. 2023, Sec. 2.2), in pixels."""

from __future__ import annotations

from typing import NamedTuple

from supir_model import images
from supir_model.crops import Crop


class SizeIds(NamedTuple):
    """Where a crop of `target` pixels lies in the resized picture (mirrored, if the crop is), and what the picture measured before."""

    original_height: int
    original_width: int
    top: int
    left: int
    target_height: int
    target_width: int


def size_ids(data: images.Encoded, crop: Crop) -> SizeIds:
    """Of a crop of this encoded picture; no pixel is decoded."""
    height, width = images.sniff(data).upright_size
    place = crop.place(height, width)
    left = place.width - crop.size_px - place.left if crop.mirrored else place.left
    return SizeIds(height, width, place.top, left, crop.size_px, crop.size_px)
