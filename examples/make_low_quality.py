#!/usr/bin/env python3
"""Make examples/low_quality/ from photographs of examples/photos/ that are held out of training: small, compressed, a little noisy.

    python examples/make_low_quality.py

What `pipelines/restore.py` restores in the demo. The table examples/low_quality.csv is written along, with licence and author.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
COLUMNS = ("file", "licence", "licence_url", "attribution", "source_url", "changes")
# file -> (left, top, right, bottom) as parts of the whole, longer side in pixels, noise of 255, JPEG quality
RECIPES = {
    "astronaut.png": ((0.22, 0.0, 0.68, 0.46), 128, 4.0, 40),
    "coffee_cup.png": ((0.1, 0.0, 0.9, 1.0), 128, 6.0, 45),
    "dandelions_at_sunset.jpg": ((0.0, 0.0, 0.62, 1.0), 128, 5.0, 50),
    "paint_brushes.jpg": ((0.25, 0.05, 0.95, 0.75), 128, 3.0, 30),
}


def main() -> None:
    """Write the pictures and their table."""
    with (HERE / "photos.csv").open(encoding="utf-8") as file:
        told = {row["file"]: row for row in csv.DictReader(file)}
    target = HERE / "low_quality"
    target.mkdir(exist_ok=True)
    with (HERE / "low_quality.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for position, (name, recipe) in enumerate(RECIPES.items()):
            made = f"{Path(name).stem}_small.jpg"
            spoil(HERE / "photos" / name, target / made, position, *recipe)
            changes = f"cut out of {name}, {recipe[1]} px wide or high, noise of {recipe[2]:g} levels added, JPEG quality {recipe[3]}"
            table.writerow({**told[name], "file": made, "changes": changes})


def spoil(source: Path, target: Path, seed: int, box: tuple[float, ...], longer_px: int, noise: float, quality: int) -> None:
    """Cut, shrink, add noise, compress."""
    with Image.open(source) as image:
        corners = [round(part * side) for part, side in zip(box, (*image.size, *image.size), strict=True)]
        small = image.convert("RGB").crop((corners[0], corners[1], corners[2], corners[3]))
        small.thumbnail((longer_px, longer_px), Image.Resampling.BICUBIC)
    pixels = np.asarray(small, dtype=np.float32) + noise * np.random.Generator(np.random.Philox(seed)).standard_normal(
        (*small.size[::-1], 3)
    )
    Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(target, quality=quality)


if __name__ == "__main__":
    main()
