#!/usr/bin/env python3
"""Makes docs/pictures/degradation.png: the centre of one photograph under every preset, several draws of the drawn ones.

python docs/make_pictures.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PHOTO = ROOT / "examples" / "photos" / "two_dogs_at_a_window.jpg"
CELLS = ["original", "x4", "x8", "blur2_x4", "x4_noise40", "blur2_x4_noise20_jpeg50",
         "real_esrgan 0", "real_esrgan 1", "real_esrgan 2", "real_esrgan 3", "light_stablesr 0", "light_stablesr 1"]  # fmt: skip
SIZE_PX, SHOWN_PX, LABEL_PX, COLUMNS = 512, 232, 18, 4


def cell(rgb_HWC: np.ndarray, label: str) -> Image.Image:
    from supir_model.degradation import apply_rgb, draw
    from supir_model.images import crop

    name, _, position = label.partition(" ")
    shown = rgb_HWC if name == "original" else apply_rgb(rgb_HWC, draw(name, 0, int(position or 0), SIZE_PX))
    picture = Image.new("RGB", (SHOWN_PX, SHOWN_PX + LABEL_PX), "white")
    picture.paste(Image.fromarray(crop(shown, SHOWN_PX, u_y=0.2, u_x=0.5)), (0, LABEL_PX))
    ImageDraw.Draw(picture).text((2, 3), label.replace(" ", ", draw "), fill="black")
    return picture


def main() -> int:
    from supir_model.images import crop, decode

    rgb_HWC = crop(decode(PHOTO.read_bytes()).rgb_HWC, SIZE_PX, u_y=0.38, u_x=0.4)
    rows = len(CELLS) // COLUMNS
    sheet = Image.new("RGB", (COLUMNS * (SHOWN_PX + 4), rows * (SHOWN_PX + LABEL_PX + 4)), "white")
    for i, label in enumerate(CELLS):
        at = (i % COLUMNS * (SHOWN_PX + 4), i // COLUMNS * (SHOWN_PX + LABEL_PX + 4))
        sheet.paste(cell(rgb_HWC, label), at)
    out = ROOT / "docs" / "pictures" / "degradation.png"
    out.parent.mkdir(exist_ok=True)
    sheet.save(out, optimize=True)
    print(f"{out.relative_to(ROOT)}: {out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
