"""images.py: every kind of bad input, the trusted implementation being Pillow itself on files made here."""

from __future__ import annotations

import io
import pickle
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from supir_model import images
from supir_model.images import ImageError, decode, sniff
from supir_model.srgb import BROKEN_PROFILE, NO_PROFILE
from tests.helpers import photographs

ROOT = Path(__file__).resolve().parents[3]
PHOTOS = ROOT / "examples" / "photos"


def photo(size_px: int = 48) -> Image.Image:
    image = Image.open(PHOTOS / "astronaut.png").convert("RGB").resize((size_px * 2, size_px))
    image.info.clear()  # the file's own profile
    return image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[images.ORIENTATION_TAG] = orientation
    return tags


def frames(format: str) -> bytes:
    return encoded(photo(), format, save_all=True, append_images=[ImageOps.mirror(photo())])


BAD = {
    "empty": (b"", "empty"),
    "text": (b"This is no photograph.\n" * 40, "not_an_image"),
    "html": (b"<!DOCTYPE html><html>404</html>", "not_an_image"),
    "zeros": (b"\0" * 5000, "not_an_image"),
    "truncated jpeg": (encoded(photo(), "JPEG", quality=95)[:2500], "truncated"),
    "truncated jpeg header": (encoded(photo(), "JPEG")[:60], "truncated"),
    "truncated png": (encoded(photo(), "PNG")[:4000], "truncated"),
    "huge png": (png_header(50_000, 50_000), "too_many_pixels"),
    "large png": (png_header(9_500, 9_000), "too_many_pixels"),
    "animated png": (frames("PNG"), "animated"),
    "animated webp": (frames("WEBP"), "animated"),
    "two pages": (frames("TIFF"), "animated"),
    "gif": (encoded(photo(), "GIF"), "unsupported_format"),
    "animated gif": (frames("GIF"), "unsupported_format"),
    "float tiff": (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_has_a_code_and_a_reason(name: str) -> None:
    data, code = BAD[name]
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.code == code
    assert len(str(caught.value)) > 15
    again = pickle.loads(pickle.dumps(caught.value))  # Ray carries it between processes
    assert (again.code, str(again)) == (code, str(caught.value))


def test_truncated_webp_and_tiff_are_refused() -> None:
    for format in ("WEBP", "TIFF", "BMP"):
        data = encoded(photo(), format)
        with pytest.raises(ImageError) as caught:
            decode(data[: len(data) // 2])
        assert caught.value.code in ("truncated", "damaged", "not_an_image"), format


def test_the_cap_holds_before_decoding() -> None:
    with pytest.raises(ImageError, match="cap"):
        decode(encoded(photo(), "PNG"), max_pixels=48 * 96 - 1)
    assert decode(encoded(photo(), "PNG"), max_pixels=48 * 96).rgb_HWC.shape == (48, 96, 3)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds in broken headers
def test_mutated_files_raise_nothing_else() -> None:
    """2,000 files with flipped bytes or cut ends: either pixels or ImageError, the same from bytes and from a view of them."""
    rng = random.Random(0)
    small = photo(16)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for format in images.FORMATS:
        whole = encoded(small, format, **({} if format == "BMP" else {"exif": exif(6), "icc_profile": profile}))
        for _ in range(400):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(min(len(data), rng.choice((64, 512, len(data)))))] = rng.randrange(256)
            cut = bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
            found, of_a_view = _decoded(cut, max_pixels=100_000), _decoded(memoryview(cut), max_pixels=100_000)
            assert type(found) is type(of_a_view), "bytes that lie in Arrow's memory"
            assert np.array_equal(found, of_a_view)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(format: str, orientation: int) -> None:
    options = {"exif": exif(orientation)} | ({"lossless": True} if format == "WEBP" else {})
    options |= {"quality": 95} if format == "JPEG" else {}
    data = encoded(photo(), format, **options)
    info = sniff(data)
    assert (info.format, info.width, info.height, info.orientation) == (format, 96, 48, orientation)
    stored = Image.open(io.BytesIO(data)) if format == "JPEG" else photo()
    trusted = stored.convert("RGB")
    trusted.getexif()[images.ORIENTATION_TAG] = orientation
    found = decode(data)
    assert np.array_equal(found.rgb_HWC, np.asarray(ImageOps.exif_transpose(trusted)))
    assert found.info == info
    assert found.rgb_HWC.flags.c_contiguous
    assert found.rgb_HWC.flags.writeable


def test_a_wrong_orientation_counts_as_upright() -> None:
    assert sniff(encoded(photo(), "JPEG", exif=exif(9))).orientation == 1


def test_grey_palette_and_one_bit() -> None:
    grey = photo().convert("L")
    rgb_HWC = decode(encoded(grey, "PNG")).rgb_HWC
    assert np.array_equal(rgb_HWC, np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    palette = photo().quantize(32)
    assert np.array_equal(decode(encoded(palette, "PNG")).rgb_HWC, np.asarray(palette.convert("RGB")))
    assert set(np.unique(decode(encoded(grey.convert("1"), "PNG")).rgb_HWC)) == {0, 255}


def test_sixteen_bits_keep_the_upper_eight() -> None:
    grey_HW = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for format in ("PNG", "TIFF"):
        found = decode(encoded(Image.fromarray(grey_HW), format)).rgb_HWC
        assert np.array_equal(found[..., 0].ravel(), np.arange(256)), format


def test_cmyk() -> None:
    cmyk = photo().convert("CMYK")
    found = decode(encoded(cmyk, "TIFF")).rgb_HWC
    assert np.array_equal(found, np.asarray(photo()))  # Pillow's plain conversion inverts exactly
    close = decode(encoded(cmyk, "JPEG", quality=95)).rgb_HWC.astype(int)
    assert np.abs(close - np.asarray(photo())).mean() < 6  # JPEG of quality 95, four channels


def test_alpha_is_composited_on_white() -> None:
    rgba = photo().convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    white = Image.new("RGBA", rgba.size, "white")
    trusted = np.asarray(Image.alpha_composite(white, rgba).convert("RGB")).astype(int)
    for format in ("PNG", "WEBP"):
        data = encoded(rgba, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
        assert np.abs(decode(data).rgb_HWC - trusted).max() <= 1, format  # rounding of two 8-bit blends
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    assert (decode(encoded(palette, "PNG", transparency=1)).rgb_HWC == 255).all()


def swapped_profile() -> bytes:
    """A matrix profile whose red and blue primaries are exchanged, so that applying it is easy to see."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = data.index(b"rXYZ"), data.index(b"bXYZ")
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    at = data.index(b"s\0R\0G\0B") if b"s\0R\0G\0B" in data else data.index(b"sRGB", 128)
    data[at] = ord("t")  # described as tRGB, or it would be taken for sRGB
    return bytes(data)


def test_profile_is_applied() -> None:
    data = encoded(photo(), "PNG", icc_profile=swapped_profile())
    info = sniff(data)
    assert info.colour_profile not in ("", BROKEN_PROFILE)
    assert "sRGB" not in info.colour_profile
    found = decode(data).rgb_HWC.astype(int)
    assert np.abs(found - np.asarray(photo())[..., ::-1]).mean() < 2  # 8-bit colour management, both ways


def test_profiles_that_change_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile, name in ((srgb, "sRGB built-in"), (b"rubbish", BROKEN_PROFILE), (None, NO_PROFILE)):
        data = encoded(photo(), "PNG", **({"icc_profile": profile} if profile else {}))
        assert sniff(data).colour_profile == name
        assert np.array_equal(decode(data).rgb_HWC, np.asarray(photo()))
    grey = encoded(photo().convert("L"), "PNG", icc_profile=srgb)  # an RGB profile on a grey picture
    assert decode(grey).rgb_HWC.shape == (48, 96, 3)


def test_png_round_trip() -> None:
    rgb_HWC = np.asarray(photo())
    assert np.array_equal(decode(images.encode_png(rgb_HWC)).rgb_HWC, rgb_HWC)
    assert images.encode_png(rgb_HWC) == images.encode_png(rgb_HWC.copy())
    with pytest.raises(ValueError, match="uint8"):
        images.encode_png(rgb_HWC.astype(np.float32))


def test_sizes() -> None:
    rgb_HWC = np.asarray(photo())
    assert images.resize_short_side(rgb_HWC, 24).shape == (24, 48, 3)
    assert images.resize(rgb_HWC, 48, 96) is rgb_HWC
    assert np.array_equal(images.crop(rgb_HWC, 48, u_x=0.0), rgb_HWC[:, :48])
    assert np.array_equal(images.crop(rgb_HWC, 48, u_x=1.0), rgb_HWC[:, 48:])
    assert np.array_equal(images.crop(rgb_HWC, 48), rgb_HWC[:, 24:72])
    with pytest.raises(ValueError, match="resize_short_side"):
        images.crop(rgb_HWC, 49)


def test_a_mirrored_crop_is_numpys() -> None:
    rgb_HWC = np.random.default_rng(0).integers(0, 256, (7, 6, 3), dtype=np.uint8)
    plain_HWC, mirrored_HWC = (images.crop(rgb_HWC, 5, u_y=1.0, u_x=0.0, mirrored=value) for value in (False, True))
    assert np.array_equal(plain_HWC, rgb_HWC[2:, :5])
    assert np.array_equal(mirrored_HWC, plain_HWC[:, ::-1])
    assert plain_HWC.flags.c_contiguous
    assert mirrored_HWC.flags.c_contiguous


def test_ranges_and_layouts() -> None:
    rgb_HWC = np.asarray(photo())
    unit = images.rgb_to_unit([rgb_HWC, rgb_HWC])
    assert tuple(unit.shape) == (2, 3, 48, 96)
    assert (float(unit.min()), float(unit.max())) == (rgb_HWC.min() / 255, rgb_HWC.max() / 255)
    assert np.array_equal(images.unit_to_rgb(unit)[1], rgb_HWC)
    assert np.array_equal(images.model_to_rgb(images.rgb_to_model(rgb_HWC))[0], rgb_HWC)
    assert images.model_to_unit(unit * 0 + 3).max() == 1
    assert tuple(images.resize_BCHW(unit, 24, 48).shape) == (2, 3, 24, 48)


def test_decoding_needs_no_torch() -> None:
    script = (
        "import sys; from supir_model.images import decode;"
        "decode(open(sys.argv[1], 'rb').read()); assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", script, str(PHOTOS / "cat.png")], check=True, cwd=ROOT)


def test_every_example_is_what_its_table_says() -> None:
    import csv

    with (ROOT / "examples" / "photos.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert {row["file"] for row in rows} == {path.name for path in PHOTOS.iterdir()}
    assert sum(path.stat().st_size for path in PHOTOS.iterdir()) < 12e6
    fatal = {"truncated", "not_an_image", "empty", "too_many_pixels"}
    for row in rows:
        assert all((row["licence"], row["licence_url"].startswith("https://"), row["attribution"])), row["file"]
        data = (PHOTOS / row["file"]).read_bytes()
        if row["role"] in fatal:
            with pytest.raises(ImageError) as caught:
                decode(data)
            assert caught.value.code == row["role"]
        else:
            assert decode(data).rgb_HWC.ndim == 3


# ---------------------------------------------------------------- the fast path of whole JPEGs


def _by_pillow(data: bytes, monkeypatch: pytest.MonkeyPatch) -> np.ndarray | str:
    with monkeypatch.context() as patch:
        patch.setattr(images, "_plain_jpeg", lambda *_: None)
        return _decoded(data)


def _decoded(data: images.Encoded, max_pixels: int = images.MAX_PIXELS) -> np.ndarray | str:
    try:
        return images.decode(data, max_pixels=max_pixels).rgb_HWC
    except images.ImageError as error:
        return error.code


@pytest.mark.parametrize("how", [{"quality": 95}, {"quality": 60, "progressive": True}, {"quality": 80, "subsampling": 0},
                                 {"quality": 75, "restart_marker_blocks": 3}])  # fmt: skip
def test_a_jpeg_has_the_pixels_that_pillow_gives_it_whole_or_damaged(how: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV and Pillow carry the same libjpeg-turbo: the way that a file takes must not show, whatever befell it."""
    rng = np.random.default_rng(4)
    for path in photographs(3):
        with Image.open(path) as image:
            small = image.convert("RGB")
        small.thumbnail((130, 130))
        sink = io.BytesIO()
        exif = Image.Exif()
        exif[images.ORIENTATION_TAG] = 6
        small.save(sink, "JPEG", exif=exif, **how)
        whole = sink.getvalue()
        start = whole.index(b"\xff\xda") + 14  # the header is tested above
        for case in range(8):
            data = bytearray(whole)
            if case:
                data[int(rng.integers(start, len(data) - 2))] = int(rng.integers(0, 255))
            ours, pillows = _decoded(bytes(data)), _by_pillow(bytes(data), monkeypatch)
            assert type(ours) is type(pillows)
            assert np.array_equal(ours, pillows)
        assert _decoded(whole[: len(whole) // 2]) == "truncated"
