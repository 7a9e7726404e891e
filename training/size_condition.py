"""SDXL's size condition of one training crop (Podell et al. 2023, Sec. 2.2), in pixels."""

from __future__ import annotations

from typing import NamedTuple

from supir_model import images


class SizeIds(NamedTuple):
    """Where a crop of `target` pixels lies in the resized picture (mirrored, if the crop is), and what the picture measured before."""

    original_height: int
    original_width: int
    top: int
    left: int
    target_height: int
    target_width: int


def upright_size(data: images.Encoded) -> tuple[int, int]:
    """(height, width) of an encoded picture as it is seen; no pixel is decoded."""
    info = images.sniff(data)
    turned = info.orientation >= 5  # EXIF: rows and columns exchanged
    return (info.width, info.height) if turned else (info.height, info.width)


def size_ids(data: images.Encoded, short_side_px: int | None, crop_px: int, u_y: float, u_x: float, mirrored: bool) -> SizeIds:
    """Of the crop that `training.batches` takes of this picture with these draws."""
    height, width = upright_size(data)
    wanted = max(short_side_px or max(min(height, width), crop_px), crop_px)
    scale = wanted / min(height, width)
    resized = [max(wanted, round(side * scale)) for side in (height, width)]  # as images.resize_short_side
    top, left = (round(u * (side - crop_px)) for u, side in zip((u_y, u_x), resized, strict=True))
    left = resized[1] - crop_px - left if mirrored else left
    return SizeIds(height, width, top, left, crop_px, crop_px)
