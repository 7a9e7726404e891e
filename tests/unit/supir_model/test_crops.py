"""A crop that decodes no more than it needs has the pixels of the whole picture's crop, whatever the file is like."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from supir_model import images
from supir_model.crops import Crop, decode_crop
from supir_model.jpeg_rows import with_fewer_rows
from tests.helpers import photographs

HEADER_END = b"\xff\xda"


def picture(height: int, width: int) -> Image.Image:
    with Image.open(photographs(1)[0]) as image:
        return image.convert("RGB").resize((width, height))


def encoded(image: Image.Image, **how: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, how.pop("format", "JPEG"), **how)
    return sink.getvalue()


def outcome(make: Any) -> np.ndarray[Any, Any] | str:
    try:
        return np.asarray(make())
    except images.ImageError as error:
        return error.code


def assert_equal(data: bytes, crop: Crop) -> None:
    ours, whole = outcome(lambda: decode_crop(data, crop)), outcome(lambda: crop.cut(crop.decode_whole(data)))
    assert np.array_equal(ours, whole), f"{ours!r}, the whole picture has {whole!r}"


JPEGS = st.fixed_dictionaries(
    {"quality": st.sampled_from([5, 60, 95, 100]), "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "4:1:1"])},
    optional={"progressive": st.just(True), "restart_marker_rows": st.sampled_from([1, 3]), "optimize": st.just(True),
              "comment": st.just(b"\xff\xda\xff\xc0")},
)  # fmt: skip
FORMATS = JPEGS | st.sampled_from([{"format": "PNG"}, {"format": "WEBP", "lossless": True}])
CROPS = st.builds(
    Crop, size_px=st.integers(1, 90), short_side_px=st.none() | st.integers(8, 260), u_y=st.floats(0, 1), u_x=st.floats(0, 1),
    mirrored=st.booleans(),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(height=st.integers(1, 200), width=st.integers(1, 150), how=FORMATS, crop=CROPS, orientation=st.sampled_from([1, 1, 1, 3, 6]))
def test_equal_to_the_whole_pictures(height: int, width: int, how: dict[str, Any], crop: Crop, orientation: int) -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION_TAG] = orientation
    assert_equal(encoded(picture(height, width), exif=exif, **how), crop)


@settings(max_examples=80, deadline=None)
@given(how=JPEGS, crop=CROPS, changed=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3), kept=st.floats(0.1, 1))
def test_equal_where_the_file_is_damaged(how: dict[str, Any], crop: Crop, changed: list[tuple[float, int]], kept: float) -> None:
    """Also where data is missing and an end marker was put behind what is there: decoders fill such pictures up with grey."""
    data = bytearray(encoded(picture(160, 96), **how))
    start = data.index(HEADER_END)
    data = data[: int(start + kept * (len(data) - start))] + b"\xff\xd9"
    for where, value in changed:
        data[int(start + where * (len(data) - 3 - start))] = value
    assert_equal(bytes(data), crop)


@pytest.mark.parametrize("tail", [b"", b"\0" * 100, b"another picture" + b"\xff\xd9"], ids=["whole", "padded", "not alone"])
@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_a_sequential_jpeg_is_decoded_no_further_and_nothing_is_complained_of(
    subsampling: str, tail: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{subsampling}")
    data = cv2.imencode(".jpg", np.asarray(picture(400, 61)), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor])[1].tobytes() + tail
    fewer = with_fewer_rows(data, 96)  # whole rows of blocks: the last one's chroma depends on the next
    assert fewer is not None
    first = cv2.imdecode(np.frombuffer(fewer, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert 96 < len(first) <= 96 + 16
    assert np.array_equal(first[:96], images.decode(data).rgb_HWC[:96])
    for file in (data, memoryview(pa.py_buffer(data))):
        assert len(images.decode(file, rows=lambda height, width: 96).rgb_HWC) == len(first)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("how", [{"progressive": True}, {"restart_marker_rows": 1}])
def test_what_the_whole_file_is_needed_for(how: dict[str, Any]) -> None:
    assert with_fewer_rows(encoded(picture(400, 64), **how), 100) is None
    assert with_fewer_rows(encoded(picture(400, 64)), 380) is None, "no row of blocks less"


def test_a_broken_header_is_left_to_the_decoder() -> None:
    data = encoded(picture(400, 64))
    start = data.index(HEADER_END)
    assert all(with_fewer_rows(data[:end], 100) is None for end in range(2, start + 4))
    assert with_fewer_rows(data[:2] + b"junk" + data[2:], 100) is None
    assert with_fewer_rows(data[:-2], 100) is None
