#!/usr/bin/env python3
"""Makes the deliberately bad files of examples/photos/ out of the good ones, and their rows of photos.csv.

    python examples/make_bad.py

The same Pillow gives the same bytes. Each file has one fault that the chain must name: see ROLES.
"""

from __future__ import annotations

import csv
import io
import struct
import zlib
from pathlib import Path

from PIL import Image, ImageFilter, ImageOps

FOLDER = Path(__file__).resolve().parent
PHOTOS = FOLDER / "photos"
TABLE = FOLDER / "photos.csv"

# file -> (made from, role, what was changed); the rows of photos.csv carry licence and attribution of the parent
ROLES = {
    "bad_blurred.jpg": ("forest_stream.jpg", "blurred", "cropped, mirrored and blurred (Gaussian, radius 10)"),
    "bad_flat_sky.jpg": ("sunrise_over_hills.jpg", "flat", "cropped to the sky and smoothed"),
    "bad_tiny.jpg": ("autumn_valley.jpg", "tiny", "cropped, mirrored and resized to 100 x 100"),
    "bad_duplicate.jpg": ("paint_brushes.jpg", "duplicate", "none (an exact copy under another name)"),
    "bad_near_duplicate.jpg": ("mountain_path.jpg", "near_duplicate", "resized to 93 % and recompressed, quality 70"),
    "bad_truncated.jpg": ("drum_and_wine.jpg", "truncated", "cut after 40 % of its bytes"),
    "bad_text.jpg": ("", "not_an_image", ""),
    "bad_empty.jpg": ("", "empty", ""),
    "bad_huge_header.png": ("", "too_many_pixels", ""),
}


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def blurred(parent: Image.Image) -> bytes:
    crop = ImageOps.mirror(parent.crop((240, 20, 1040, 820)))
    return jpeg(crop.filter(ImageFilter.GaussianBlur(10)))


def flat_sky(parent: Image.Image) -> bytes:
    return jpeg(parent.crop((60, 20, 580, 260)).filter(ImageFilter.GaussianBlur(6)).resize((1040, 480)))


def tiny(parent: Image.Image) -> bytes:
    return jpeg(ImageOps.mirror(parent.crop((200, 0, 1052, 852))).resize((100, 100), Image.Resampling.LANCZOS))


def near_duplicate(parent: Image.Image) -> bytes:
    size = (round(parent.width * 0.93), round(parent.height * 0.93))
    return jpeg(parent.resize(size, Image.Resampling.BICUBIC), quality=70)


def huge_header() -> bytes:
    """A PNG of a hundred bytes that claims 50,000 x 50,000 RGB pixels (7.5 GB once decoded)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def contents() -> dict[str, bytes]:
    """file name -> bytes, for every name of ROLES."""

    def parent(name: str) -> Image.Image:
        return Image.open(PHOTOS / ROLES[name][0]).convert("RGB")

    drum = (PHOTOS / ROLES["bad_truncated.jpg"][0]).read_bytes()
    return {
        "bad_blurred.jpg": blurred(parent("bad_blurred.jpg")),
        "bad_flat_sky.jpg": flat_sky(parent("bad_flat_sky.jpg")),
        "bad_tiny.jpg": tiny(parent("bad_tiny.jpg")),
        "bad_duplicate.jpg": (PHOTOS / ROLES["bad_duplicate.jpg"][0]).read_bytes(),
        "bad_near_duplicate.jpg": near_duplicate(parent("bad_near_duplicate.jpg")),
        "bad_truncated.jpg": drum[: len(drum) * 4 // 10],
        "bad_text.jpg": b"This file says that it is a photograph, and is three lines of text.\n" * 3,
        "bad_empty.jpg": b"",
        "bad_huge_header.png": huge_header(),
    }


def rewrite_table() -> None:
    """Keeps the rows of the photographs, makes those of the bad files anew."""
    with TABLE.open(newline="", encoding="utf-8") as f:
        rows = [row for row in csv.DictReader(f) if row["role"] == "photograph"]
    by_file = {row["file"]: row for row in rows}
    columns = list(rows[0])
    ours = {"source": "made by examples/make_bad.py", "licence": "CC0-1.0", "attribution": "the project's authors",
            "licence_url": "https://creativecommons.org/publicdomain/zero/1.0/", "changes": "none"}  # fmt: skip
    for name, (parent, role, change) in ROLES.items():
        row = dict.fromkeys(columns, "") | (by_file[parent] if parent else ours) | {"file": name, "role": role}
        if parent:
            row["source"] = f"made by examples/make_bad.py from {parent}; {row['source']}"
            row["changes"] = f"{by_file[parent]['changes']}; then: {change}"
        rows.append(row)
    with TABLE.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    for name, data in contents().items():
        (PHOTOS / name).write_bytes(data)
        print(f"{name}: {len(data):,} bytes ({ROLES[name][1]})")
    rewrite_table()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
