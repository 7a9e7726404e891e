"""webp_header.py against Pillow, which reads the same files through libwebp: ordinary ones, and mutated ones."""

from __future__ import annotations

import io
import random
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from supir_model import images
from supir_model.images import ImageError, sniff
from supir_model.webp_header import read_header

PHOTO = Path(__file__).resolve().parents[3] / "examples" / "photos" / "astronaut.png"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'


def turned(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[images.ORIENTATION_TAG] = orientation
    return tags


def webp(mode: str = "RGB", **options: object) -> bytes:
    image = Image.open(PHOTO).convert(mode).resize((46, 31))
    image.info.clear()
    out = io.BytesIO()
    image.save(out, "WEBP", **options)
    return out.getvalue()


FILES = {
    "lossy": webp(),
    "lossless": webp(lossless=True),
    "alpha": webp("RGBA"),
    "lossless alpha": webp("RGBA", lossless=True),
    "profile": webp(icc_profile=PROFILE),
    "EXIF": webp(exif=turned(6)),
    "XMP": webp(xmp=XMP),
    "all": webp("RGBA", icc_profile=PROFILE, exif=turned(3), xmp=XMP),
}


def answer(read: object, data: bytes) -> object:
    try:
        return read(data)
    except ImageError as error:
        return error.code


def by_pillow(data: bytes) -> images.ImageInfo:
    return images._open(data, images.MAX_PIXELS)[1]


@pytest.mark.parametrize("name", FILES)
def test_says_what_pillow_says_and_does_without_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = FILES[name]
    expected = by_pillow(data)
    assert (expected.width, expected.height) == (46, 31)
    monkeypatch.setattr(Image, "open", None)
    assert sniff(data) == expected
    assert sniff(memoryview(data)) == expected


def test_orientation_is_read_from_exif_and_from_xmp() -> None:
    assert [sniff(FILES[name]).orientation for name in ("lossy", "EXIF", "XMP", "all")] == [1, 6, 8, 3]


def test_mutated_files_get_pillows_answer() -> None:
    chance = random.Random(5)
    read = 0
    for _ in range(4000):
        data = bytearray(chance.choice(list(FILES.values())))
        for _ in range(chance.choice((1, 1, 2))):
            at = chance.randrange(min(len(data), chance.choice((12, 30, 64, 4000))))
            data[at] = chance.choice((0, 1, 2, 255, chance.randrange(256)))
        mutated = bytes(data[: chance.choice((len(data), len(data), len(data) - 1, chance.randrange(1, len(data))))])
        read += read_header(mutated) is not None
        assert answer(sniff, mutated) == answer(by_pillow, mutated), mutated[:64]
    assert read > 400


def test_a_canvas_above_the_cap_is_refused_before_pillow_makes_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(FILES["lossless"])
    data[21:25] = (16382 | 16382 << 14 | (data[24] & 0xF0) << 24).to_bytes(4, "little")
    monkeypatch.setattr(Image, "open", None)
    for read in (sniff, images.decode):
        with pytest.raises(ImageError, match="16383 x 16383") as caught:
            read(bytes(data))
        assert caught.value.code == "too_many_pixels"


def test_a_file_of_very_many_empty_chunks_takes_no_room() -> None:
    head, many = FILES["all"][12:30], b"NONE\0\0\0\0" * 100_000
    data = b"RIFF" + (4 + len(head) + len(many)).to_bytes(4, "little") + b"WEBP" + head + many
    tracemalloc.start()
    assert read_header(data) is None
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
