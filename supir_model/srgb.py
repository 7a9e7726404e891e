"""Pictures of any mode and colour profile, as Pillow opened them, to sRGB."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

NO_PROFILE = ""  # colour_profile of a file that carries none: sRGB is assumed
BROKEN_PROFILE = "unreadable"
# what Pillow raises for hostile bytes, as found by mutating files (tests/unit/supir_model/test_images.py)
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, AttributeError,
                 OverflowError, ZeroDivisionError, struct.error, zlib.error)  # fmt: skip


def _profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    except (KeyError, ImageCms.PyCMSError, *PILLOW_ERRORS):
        return None


def profile_name(image: Image.Image) -> str:
    """Description of the ICC profile, NO_PROFILE or BROKEN_PROFILE."""
    if not image.info.get("icc_profile"):
        return NO_PROFILE
    profile = _profile(image)
    try:
        return ImageCms.getProfileDescription(profile).strip() if profile else BROKEN_PROFILE
    except (ImageCms.PyCMSError, *PILLOW_ERRORS):
        return BROKEN_PROFILE


def to_srgb(image: Image.Image) -> Image.Image:
    """Any mode that Pillow reads from our formats to RGB, alpha composited on white, profile applied. Raises PILLOW_ERRORS."""
    image = _to_eight_bits(image)
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image, alpha = rgba.convert("RGB"), rgba.getchannel("A")
        image.info["icc_profile"] = rgba.info.get("icc_profile")
    elif image.mode in ("P", "1", "YCbCr"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image.mode not in ("L", "RGB", "CMYK"):
        raise ValueError(f"pixels of mode {image.mode} have no defined way to RGB: convert the file to 8-bit RGB")
    rgb = _apply_profile(image)
    if alpha is None:
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey_HW = np.asarray(image).astype(np.float32) / 257.0  # 65535 / 255
        eight = Image.fromarray(np.rint(grey_HW).clip(0, 255).astype(np.uint8))
        eight.info["icc_profile"] = image.info.get("icc_profile")
        return eight
    return image


def _apply_profile(image: Image.Image) -> Image.Image:
    profile = _profile(image) if image.info.get("icc_profile") else None
    space = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}[image.mode]
    if profile is None or profile.profile.xcolor_space.strip() != space or "sRGB" in profile_name(image):
        return image.convert("RGB")
    try:  # choice: relative colorimetric with black point compensation, as browsers do
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, profile, srgb, intent, outputMode="RGB", flags=flags)
    except ImageCms.PyCMSError:
        return image.convert("RGB")
    assert converted is not None, "profileToProfile returns an image unless asked to work in place"
    return converted
