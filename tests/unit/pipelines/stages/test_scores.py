"""Scores of pictures of every kind, and a failed row for what does not decode."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.stages.scores import SCHEMA, Scores
from tests.helpers import photographs

STAGE = Scores(max_pixels=10_000_000)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    with Image.open(photographs(1)[0]) as image:
        rgb = image.convert("RGB")
        rgb.thumbnail((200, 200))
    return rgb.crop((0, 0, 160, 120))


def encoded(image: Image.Image, form: str, **how: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **how)
    return sink.getvalue()


def scored(*data: bytes) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    ids = [f"{i:032x}" for i in range(len(data))]
    result = STAGE.process({"images": pa.table({"image_id": ids, "source_id": ids, "bytes": pa.array(list(data), pa.binary())})}, {})
    assert result.table.schema == SCHEMA
    return result.table.to_pylist(), [(o.status, o.reason) for o in result.outcomes]


def test_every_mode_of_picture_is_measured_and_looks_like_itself(picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    grey16 = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    alpha = picture.copy()
    alpha.putalpha(255)
    rows, outcomes = scored(
        encoded(picture, "PNG"), encoded(picture.convert("CMYK"), "JPEG", quality=95), encoded(grey16, "PNG"),
        encoded(picture.quantize(64), "PNG"), encoded(alpha, "PNG"), encoded(picture.convert("L"), "PNG"),
        encoded(picture.rotate(90, expand=True), "JPEG", exif=exif, quality=95))
    assert not outcomes
    assert {(row["width"], row["height"], row["short_side"]) for row in rows} == {(160, 120, 120)}
    hashes = [int(row["phash"], 16) for row in rows]
    assert max((one ^ hashes[0]).bit_count() for one in hashes) <= 15  # measured: 64 colours and JPEG move a few bits
    assert {row["measured_by"] for row in rows} == {"scores 5"}
    assert [row["jpeg_quality"] for row in rows] == [None, pytest.approx(95, abs=1), None, None, None, None, pytest.approx(95, abs=1)]


def test_what_does_not_decode_is_failed_alone(picture: Image.Image) -> None:
    good = encoded(picture, "PNG")
    frames = encoded(picture, "WEBP", save_all=True, append_images=[picture.rotate(180)], lossless=True)
    rows, outcomes = scored(good, encoded(picture, "JPEG")[:-900], frames, b"", good)
    assert [row["source_id"][-1] for row in rows] == ["0", "4"]
    assert outcomes == [("failed", "truncated"), ("failed", "animated"), ("failed", "empty")]


def test_threads_and_slices_change_nothing(picture: Image.Image) -> None:
    data = [encoded(picture.rotate(angle), "PNG") for angle in range(5)]
    ids = [f"{i:032x}" for i in range(5)]
    images = pa.table({"image_id": ids, "source_id": ids, "bytes": pa.array(data, pa.binary())})
    whole = STAGE.process({"images": images}, {}).table
    threaded = Scores(max_pixels=10_000_000, threads=4).process({"images": images}, {}).table
    parts = pa.concat_tables([STAGE.process({"images": images.slice(i, 2)}, {}).table for i in (0, 2, 4)])
    assert whole.to_pylist() == threaded.to_pylist() == parts.to_pylist()
    assert STAGE.process({"images": images.slice(0, 0)}, {}).table.schema == SCHEMA
