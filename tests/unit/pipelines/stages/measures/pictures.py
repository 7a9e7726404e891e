"""Photographs degraded on purpose."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from supir_model.images import crop, decode
from tests.helpers import ROOT

NAMES = ("autumn_valley", "fig_in_a_red_bowl", "forest_stream", "mountain_path", "paint_brushes")  # at native resolution, and sharp
SIDE_PX = 512
Rgb = NDArray[np.uint8]


@cache
def crops() -> list[Rgb]:
    """The centres of photographs."""
    return [crop(decode((ROOT / "examples" / "photos" / f"{name}.jpg").read_bytes()).rgb_HWC, SIDE_PX) for name in NAMES]


def jpeg_bytes(rgb_HWC: Rgb, quality: int, **how: object) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(rgb_HWC).save(sink, "JPEG", quality=quality, **how)
    return sink.getvalue()


def jpeg(rgb_HWC: Rgb, quality: int) -> Rgb:
    return decode(jpeg_bytes(rgb_HWC, quality)).rgb_HWC


def blurred(rgb_HWC: Rgb, sigma_px: float) -> Rgb:
    import cv2

    return cv2.GaussianBlur(rgb_HWC, (0, 0), sigma_px)


def noisy(rgb_HWC: Rgb, sigma: float) -> Rgb:
    noise_HW1 = np.random.default_rng(2).normal(0, sigma, (*rgb_HWC.shape[:2], 1))
    return (rgb_HWC + noise_HW1).round().clip(0, 255).astype(np.uint8)


def enlarged(rgb_HWC: Rgb, factor: float) -> Rgb:
    """Down by area, up by bicubic."""
    import cv2

    small = cv2.resize(rgb_HWC, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, rgb_HWC.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def sharpened(rgb_HWC: Rgb, weight: float) -> Rgb:
    import cv2

    return cv2.addWeighted(rgb_HWC, 1 + weight, blurred(rgb_HWC, 1.5), -weight, 0)


def exposed(rgb_HWC: Rgb, gain: float, offset: float) -> Rgb:
    return (rgb_HWC * float(gain) + offset).clip(0, 255).astype(np.uint8)


def grey(rgb_HWC: Rgb) -> Rgb:
    return np.repeat(np.asarray(Image.fromarray(rgb_HWC).convert("L"))[..., None], 3, axis=2)


def framed(rgb_HWC: Rgb, rows: int, value: int) -> Rgb:
    return np.pad(rgb_HWC, ((rows, rows), (0, 0), (0, 0)), constant_values=value)


def collage(pictures: list[Rgb]) -> Rgb:
    """Two by two, at half size."""
    import cv2

    a, b, c, d = (cv2.resize(one, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for one in pictures[:4])
    return np.vstack([np.hstack([a, b]), np.hstack([c, d])])


def screenshot(rgb_HWC: Rgb) -> Rgb:
    """A window with a title, a side bar, lines of text and a small picture."""
    page = Image.new("RGB", (800, 600), "white")
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, 800, 40), fill=(40, 60, 90))
    draw.rectangle((0, 40, 180, 600), fill=(230, 232, 236))
    for line in range(30):
        draw.text((200, 60 + 17 * line), "a line of text that says what a window says, again and again", fill=(30, 30, 30))
    page.paste(Image.fromarray(rgb_HWC).resize((160, 160)), (600, 420))
    return np.asarray(page)


def written(rgb_HWC: Rgb, size_px: int, lines: int, *, banner: bool) -> Rgb:
    """White lines of text, on a black banner or on the picture itself."""
    picture = Image.fromarray(rgb_HWC)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size_px)
    step = round(size_px * 1.3)
    if banner:
        draw.rectangle((0, 20, picture.width, 40 + lines * step), fill="black")
    for line in range(lines):
        draw.text((12, 30 + line * step), "what a caption says of a picture " * 2, fill="white", font=font)
    return np.asarray(picture)


def page(size_px: int, side_px: int = 768) -> Rgb:
    """A page of text."""
    picture = Image.new("RGB", (side_px, side_px), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size_px)
    for line in range(int((side_px - 80) / size_px / 1.4)):
        draw.text((40, 40 + line * size_px * 1.4), "a page says this and that " * 2, fill=(20, 20, 20), font=font)
    return np.asarray(picture)
