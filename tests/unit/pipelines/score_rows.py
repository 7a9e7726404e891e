"""Rows of a scores table that tests make up."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa

from pipelines.stages.hashes import CROPS, PARTS
from pipelines.stages.scores import SCHEMA
from pipelines.stages.selection import SelectionRule, Threshold

RULE = SelectionRule(min_short_side=100, sharpness=Threshold(percentile=0, at_least=10, at_most=10),
                     flatness=Threshold(percentile=100, at_least=0.5, at_most=0.5), near_radius=4)


def row(source: str, *, image: str = "", width: int = 200, height: int = 200, sharpness: float = 100, flatness: float = 0,
        phash: int | None = None, bits_per_pixel: float = 2) -> dict[str, Any]:
    """Scores of a picture called `source`, with bytes called `image`; by default unlike any other."""
    image_id = hashlib.sha256((image or source).encode()).hexdigest()
    return {"image_id": image_id, "source_id": source_id(source), "width": width, "height": height, "short_side": min(width, height),
            "sharpness": float(sharpness), "flatness": float(flatness),
            "phash": (own := image_id if phash is None else f"{phash:064x}"), "phash_quality": 1.0, "phash_crops": own * len(CROPS),
            "phash_parts": own * PARTS, "bits_per_pixel": float(bits_per_pixel),
            "measured_by": "test"}


def source_id(source: str) -> str:
    """The id of a made-up source."""
    return hashlib.sha256(source.encode()).hexdigest()[:32]


def table(*rows: dict[str, Any]) -> pa.Table:
    """A scores table."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)
