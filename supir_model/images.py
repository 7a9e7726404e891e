"""Bytes to pixels and back: the one decoder that everyone uses, and the only conversions of range and layout.

Shapes: H height, W width, C = 3 channels (R, G, B), B batch. Three forms of an image exist in this project: `rgb_HWC`
uint8 0..255 (numpy, sRGB, upright), `x_unit_BCHW` float in [0, 1] (torch) and `x_BCHW` float in [-1, 1] (torch, what the
networks see).
torch is imported only by the functions that return tensors.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from supir_model.jpeg_rows import with_fewer_rows
from supir_model.srgb import NO_PROFILE, PILLOW_ERRORS, profile_name, to_srgb
from supir_model.webp_header import read_header

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 80_000_000  # choice: below the 89 M at which Pillow warns; 240 MB of RGB
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
PNG_LEVEL = 4  # choice: a third of level 9's time for 3 % more bytes

ORIENTATION_TAG = 0x0112
UPRIGHT = {  # EXIF orientation -> what turns the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
JPEG_END = b"\xff\xd9"
TAIL_BYTES = 64  # looked at for it; cameras pad with zeros
FOREIGN = {b"GIF8": "GIF", b"%PDF": "PDF", b"8BPS": "PSD", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL"}


class ImageError(ValueError):
    """An image that cannot be used. `code` is short and fit for a ledger:
    empty, not_an_image, unsupported_format, too_many_pixels, animated, truncated, damaged."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return ImageError, (self.code, str(self))


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What the header says. `width` and `height` in pixels as stored, before `orientation` (EXIF 1..8) is applied."""

    format: str
    width: int
    height: int
    orientation: int
    colour_profile: str  # as srgb.profile_name
    luminance_table: tuple[int, ...] | None = None  # 64 quantisation steps of a JPEG, row after row; None for other formats

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) of the picture as it is seen."""
        turned = self.orientation >= 5  # EXIF: rows and columns exchanged
        return (self.width, self.height) if turned else (self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """`rgb_HWC`: uint8, sRGB, upright, contiguous; of `info`'s size, or its first rows where no more were asked for."""

    rgb_HWC: np.ndarray
    info: ImageInfo


# ---------------------------------------------------------------- bytes -> pixels

Encoded = bytes | memoryview
"""A file's bytes; a view of them is read where it lies, without a copy."""


class _Lying(io.RawIOBase):
    """Bytes that lie elsewhere, as a file; `io.BytesIO` would copy them, unless they are `bytes`."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view.cast("B"), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, len(self._view))[whence]
        return self._at

    def readinto(self, into: Any) -> int:
        found = self._view[self._at : self._at + len(into)]
        into[: len(found)] = found
        self._at += len(found)
        return len(found)


def _file(data: Encoded) -> io.BytesIO | io.BufferedReader:
    return io.BytesIO(data) if isinstance(data, bytes) else io.BufferedReader(_Lying(data))


def _tail(data: Encoded) -> bytes:
    """The last bytes without the zeros behind them."""
    tail = bytes(data[-TAIL_BYTES:]).rstrip(b"\0")
    return tail if len(tail) >= len(JPEG_END) else bytes(data).rstrip(b"\0")


def sniff(data: Encoded, *, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Reads the header alone: no pixel is decoded. Raises ImageError."""
    return _webp_info(data, max_pixels) or _open(data, max_pixels)[1]


Rows = Callable[[int, int], int]
"""How many rows, from the top, are wanted of an upright picture of this height and width."""


def decode(data: Encoded, *, max_pixels: int = MAX_PIXELS, rows: Rows | None = None) -> Decoded:
    """Encoded bytes, hostile ones too, to an upright sRGB picture. Raises ImageError; the cap holds before decoding.

    With `rows` those below may be missing, where that saves their decoding: of sequential JPEGs that nothing turns.

    Alpha is composited on white (choice: what a viewer of a web page sees). Grey becomes three equal channels, 16 bits
    become 8, CMYK without a profile takes Pillow's plain conversion. An unreadable ICC profile is ignored, as browsers do.
    """
    image, info = _open(data, max_pixels)
    turned = info.format != "TIFF" and info.orientation in UPRIGHT  # Pillow turns TIFFs by itself
    plain_HWC = _plain_jpeg(data, image, info, None if turned or rows is None else rows(info.height, info.width))
    if plain_HWC is not None and not turned:
        return Decoded(rgb_HWC=plain_HWC, info=info)
    try:
        rgb = _loaded(image) if plain_HWC is None else Image.fromarray(plain_HWC)
    except PILLOW_ERRORS as error:
        code = "truncated" if "truncated" in str(error).lower() else "damaged"
        message = f"the {info.format} header is good, its pixels are not ({error}): fetch it again"
        raise ImageError(code, message) from error
    if turned:
        rgb = rgb.transpose(UPRIGHT[info.orientation])
    return Decoded(rgb_HWC=np.array(rgb, dtype=np.uint8, order="C"), info=info)


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return to_srgb(image)


def _plain_jpeg(data: Encoded, image: Image.Image, info: ImageInfo, rows: int | None) -> np.ndarray | None:
    """A whole sRGB JPEG, or no more than so many of its first rows, in OpenCV.

    It has the same libjpeg-turbo and the same pixels as Pillow, in 0.7 of its time and half of its memory.

    None for every other file, and for what OpenCV refuses: Pillow then decodes it, or says what is wrong with it.
    """
    srgb = info.colour_profile == NO_PROFILE or "sRGB" in info.colour_profile
    if info.format != "JPEG" or image.mode != "RGB" or not srgb or not _tail(data).endswith(JPEG_END):
        return None
    fewer = None if rows is None else with_fewer_rows(data, rows)
    first_HWC = None if fewer is None else _by_opencv(fewer)
    if first_HWC is not None and first_HWC.shape[1:] == (info.width, 3):
        return first_HWC
    rgb_HWC = _by_opencv(data)
    return rgb_HWC if rgb_HWC is not None and rgb_HWC.shape == (info.height, info.width, 3) else None


def _by_opencv(data: Encoded | bytearray) -> np.ndarray | None:
    import cv2

    found: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return found


def _webp_info(data: Encoded, max_pixels: int) -> ImageInfo | None:
    """The header of an ordinary WebP file, for which Pillow would make room for the pixels; None for every other file."""
    header = read_header(data)
    if header is None:
        return None
    _check_pixels(header.width, header.height, max_pixels)
    told = Image.Image()  # Pillow's reading of EXIF and XMP needs one
    told.info.update(header.info)
    return ImageInfo(format="WEBP", width=header.width, height=header.height, orientation=_orientation(told),
                     colour_profile=profile_name(told))


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        found = f"{width} x {height} = {width * height:,} pixels"
        raise ImageError("too_many_pixels", f"{found}, the cap is {max_pixels:,}: raise max_pixels, or shrink it first")


def _open(data: Encoded, max_pixels: int) -> tuple[Image.Image, ImageInfo]:
    if len(data) == 0:
        raise ImageError("empty", "the file has no bytes")
    if header := read_header(data):
        _check_pixels(header.width, header.height, max_pixels)  # before Pillow makes room for them
    try:
        image = Image.open(_file(data), formats=FORMATS)
        info = _read_info(image)
        several = _has_several_frames(image)
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", f"{error} (the cap is {max_pixels:,})") from error
    except PILLOW_ERRORS as error:
        raise _unreadable(bytes(data), error) from error
    _check_pixels(info.width, info.height, max_pixels)
    if several:
        raise ImageError("animated", f"a {info.format} with several frames or pages: only single pictures are taken")
    return image, info


def _unreadable(data: bytes, error: Exception) -> ImageError:
    """Why Pillow could not open it: another format, our format broken in the header, or no image at all."""
    foreign = next((name for magic, name in FOREIGN.items() if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        foreign = "AVIF, HEIC or MP4"
    if foreign:
        return ImageError("unsupported_format", f"{foreign}: convert it to one of {', '.join(FORMATS)}")
    ours = next((name for magic, name in MAGIC.items() if data.startswith(magic)), None)
    ours = "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ours
    if ours and not isinstance(error, UnidentifiedImageError) and "truncated" not in str(error).lower():
        return ImageError("damaged", f"starts as {ours}, but its header cannot be read ({error}): fetch it again")
    if ours:
        return ImageError("truncated", f"starts as {ours}, but its header is cut ({len(data)} bytes): fetch it again")
    return ImageError("not_an_image", f"first bytes {data[:8]!r} belong to none of {', '.join(FORMATS)}")


def _read_info(image: Image.Image) -> ImageInfo:
    width, height = image.size
    if image.format == "TIFF":  # Pillow's size is the upright one here
        width, height = (int(image.tag_v2[tag]) for tag in (256, 257))  # type: ignore[attr-defined]
    tables: dict[int, list[int]] = getattr(image, "quantization", {})
    return ImageInfo(
        format="JPEG" if image.format == "MPO" else str(image.format),  # MPO: a phone's JPEG, more pictures behind it
        width=width,
        height=height,
        orientation=_orientation(image),
        colour_profile=profile_name(image),
        luminance_table=tuple(tables[min(tables)]) if tables else None,
    )


def _has_several_frames(image: Image.Image) -> bool:
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def _orientation(image: Image.Image) -> int:
    try:
        # the base class's method: PngImageFile's own decodes all pixels to look for a late EXIF chunk
        value = Image.Image.getexif(image).get(ORIENTATION_TAG, 1)
    except PILLOW_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


# ---------------------------------------------------------------- pixels -> bytes


def encode_png(rgb_HWC: np.ndarray) -> bytes:
    """Lossless; the same pixels and Pillow give the same bytes."""
    out = io.BytesIO()
    Image.fromarray(_checked(rgb_HWC)).save(out, "PNG", compress_level=PNG_LEVEL)
    return out.getvalue()


def encode_jpeg(rgb_HWC: np.ndarray, *, quality: int, subsampling: int = 2) -> bytes:
    """For thumbnails and reports; `subsampling` 2 is 4:2:0 (the encoders' default), 0 is 4:4:4."""
    out = io.BytesIO()
    Image.fromarray(_checked(rgb_HWC)).save(out, "JPEG", quality=quality, subsampling=subsampling)
    return out.getvalue()


def _checked(rgb_HWC: np.ndarray) -> np.ndarray:
    if rgb_HWC.dtype != np.uint8 or rgb_HWC.ndim != 3 or rgb_HWC.shape[2] != 3:
        raise ValueError(f"expected uint8 of shape (H, W, 3), found {rgb_HWC.dtype} of shape {rgb_HWC.shape}")
    return np.ascontiguousarray(rgb_HWC)


# ---------------------------------------------------------------- size


def resize(rgb_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic with antialiasing (Pillow widens the filter when shrinking)."""
    if rgb_HWC.shape[:2] == (height, width):
        return rgb_HWC
    return np.array(Image.fromarray(_checked(rgb_HWC)).resize((width, height), Image.Resampling.BICUBIC))


def resize_short_side(rgb_HWC: np.ndarray, short_side_px: int) -> np.ndarray:
    """The shorter side becomes `short_side_px`, the aspect is kept to the nearest pixel."""
    height, width = rgb_HWC.shape[:2]
    return resize(rgb_HWC, *short_side_size(height, width, short_side_px))


def short_side_size(height: int, width: int, short_side_px: int) -> tuple[int, int]:
    """(height, width) of `resize_short_side`."""
    scale = short_side_px / min(height, width)
    return max(short_side_px, round(height * scale)), max(short_side_px, round(width * scale))


def crop(rgb_HWC: np.ndarray, size_px: int, *, u_y: float = 0.5, u_x: float = 0.5, mirrored: bool = False) -> np.ndarray:
    """A square, contiguous; `u_y`, `u_x` in [0, 1] place it between the first and the last offset (0.5: the centre).

    `mirrored` exchanges its left and right.
    """
    height, width = rgb_HWC.shape[:2]
    if min(height, width) < size_px:
        raise ValueError(f"a crop of {size_px} px from {height} x {width}: resize_short_side({size_px}) first")
    top, left = round(u_y * (height - size_px)), round(u_x * (width - size_px))
    window_HWC = rgb_HWC[top : top + size_px, left : left + size_px]
    if not mirrored:
        return np.ascontiguousarray(window_HWC)
    import cv2

    return np.asarray(cv2.flip(window_HWC, 1))  # measured: a tenth of the time of numpy's copy of a reversed view


def resize_BCHW(x_BCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bicubic with antialiasing on tensors; any range, not clamped."""
    from torch.nn.functional import interpolate

    if tuple(x_BCHW.shape[-2:]) == (height, width):
        return x_BCHW
    return interpolate(x_BCHW, size=(height, width), mode="bicubic", antialias=True)


# ---------------------------------------------------------------- range and layout


def rgb_to_unit(pictures: np.ndarray | Sequence[np.ndarray]) -> torch.Tensor:
    """uint8 HWC (one, or several of one size) or BHWC -> float32 BCHW in [0, 1]."""
    import torch

    one = isinstance(pictures, np.ndarray) and pictures.ndim == 3
    rgb_BHWC = np.asarray([pictures] if one else pictures)
    if rgb_BHWC.dtype != np.uint8 or rgb_BHWC.shape[-1] != 3:
        raise ValueError(f"expected uint8 of shape (..., H, W, 3), found {rgb_BHWC.dtype} of shape {rgb_BHWC.shape}")
    x_BHWC = torch.from_numpy(np.array(rgb_BHWC, order="C")).to(torch.float32)
    return x_BHWC.div_(255.0).permute(0, 3, 1, 2).contiguous()


def unit_to_rgb(x_unit_BCHW: torch.Tensor) -> np.ndarray:
    """float BCHW in [0, 1] -> uint8 BHWC, clamped and rounded to the nearest."""
    import torch

    x_BHWC = x_unit_BCHW.detach().to("cpu", torch.float32).permute(0, 2, 3, 1)
    rgb_BHWC: np.ndarray[Any, Any] = x_BHWC.mul(255.0).round().clamp(0, 255).to(torch.uint8).contiguous().numpy()
    return rgb_BHWC


def unit_to_model(x_unit_BCHW: torch.Tensor) -> torch.Tensor:
    """[0, 1] -> [-1, 1]."""
    return x_unit_BCHW * 2.0 - 1.0


def model_to_unit(x_BCHW: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> [0, 1], clamped: what leaves a network may lie outside."""
    return ((x_BCHW + 1.0) * 0.5).clamp(0.0, 1.0)


def rgb_to_model(pictures: np.ndarray | Sequence[np.ndarray]) -> torch.Tensor:
    """uint8 HWC, several of them, or BHWC -> float32 BCHW in [-1, 1]."""
    return rgb_to_unit(pictures).mul_(2.0).sub_(1.0)  # as unit_to_model, in place: pictures may be large


def model_to_rgb(x_BCHW: torch.Tensor) -> np.ndarray:
    """float BCHW in [-1, 1] -> uint8 BHWC."""
    return unit_to_rgb(model_to_unit(x_BCHW))
