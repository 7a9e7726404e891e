#!/usr/bin/env python3
"""Photographs degraded on purpose: what each measure says. Prints one JSON line.

    python benchmarks/measures.py [--photos examples/photos] [--markdown]

The middle 640 px of the photographs of a folder (those that are large enough), as they are and degraded. For each measure the median, and
the share of pairs (degraded, as it is; of different photographs too) in which the degraded one measures more: 0.5 tells nothing apart,
0 and 1 everything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SIDE_PX = 640
MOST = 60
FAULTY = "bad_"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
Rgb = Any


def jpeg(rgb_HWC: Rgb, quality: int) -> Rgb:
    from supir_model.images import decode, encode_jpeg

    return decode(encode_jpeg(rgb_HWC, quality=quality)).rgb_HWC


def enlarged(rgb_HWC: Rgb, factor: float, how: str) -> Rgb:
    import cv2

    small = cv2.resize(rgb_HWC, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, rgb_HWC.shape[1::-1], interpolation=getattr(cv2, f"INTER_{how}"))


def blurred(rgb_HWC: Rgb, sigma_px: float) -> Rgb:
    import cv2

    return cv2.GaussianBlur(rgb_HWC, (0, 0), sigma_px)


def sharpened(rgb_HWC: Rgb, weight: float) -> Rgb:
    import cv2

    return cv2.addWeighted(rgb_HWC, 1 + weight, blurred(rgb_HWC, 1.5), -weight, 0)


def noisy(rgb_HWC: Rgb, sigma: float) -> Rgb:
    noise_HW1 = np.random.default_rng(0).normal(0, sigma, (*rgb_HWC.shape[:2], 1))
    return (rgb_HWC + noise_HW1).round().clip(0, 255).astype(np.uint8)


def framed(rgb_HWC: Rgb, rows: int) -> Rgb:
    return np.pad(rgb_HWC, ((rows, rows), (0, 0), (0, 0)))


DEGRADED: dict[str, Callable[[Rgb], Rgb]] = {
    "as it is": lambda x: x,
    "JPEG 95": lambda x: jpeg(x, 95), "JPEG 75": lambda x: jpeg(x, 75), "JPEG 50": lambda x: jpeg(x, 50), "JPEG 30": lambda x: jpeg(x, 30),
    "JPEG 10": lambda x: jpeg(x, 10), "JPEG 50, cropped by 3 and 5 px": lambda x: jpeg(x, 50)[3:, 5:],
    "blur 1 px": lambda x: blurred(x, 1), "blur 2 px": lambda x: blurred(x, 2), "noise 5": lambda x: noisy(x, 5),
    "noise 15": lambda x: noisy(x, 15), "noise 5, JPEG 75": lambda x: jpeg(noisy(x, 5), 75),
    "enlarged 1.5, cubic": lambda x: enlarged(x, 1.5, "CUBIC"), "enlarged 2, linear": lambda x: enlarged(x, 2, "LINEAR"),
    "enlarged 2, cubic": lambda x: enlarged(x, 2, "CUBIC"), "enlarged 2, Lanczos": lambda x: enlarged(x, 2, "LANCZOS4"),
    "enlarged 2, JPEG 90": lambda x: jpeg(enlarged(x, 2, "CUBIC"), 90), "enlarged 4, cubic": lambda x: enlarged(x, 4, "CUBIC"),
    "unsharp mask 1": lambda x: sharpened(x, 1), "unsharp mask 2": lambda x: sharpened(x, 2), "frame of 40 px": lambda x: framed(x, 40),
}  # fmt: skip


def collages(pictures: list[Rgb]) -> list[Rgb]:
    """Two by two, at half size."""
    import cv2

    small = [cv2.resize(one, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for one in pictures]
    fours = [small[i:i + 4] for i in range(0, len(small) - 3, 2)]
    return [np.vstack([np.hstack([a, b]), np.hstack([c, d])]) for a, b, c, d in fours]


def squares(folder: Path) -> list[Rgb]:
    from supir_model.images import crop, decode

    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(FAULTY))
    pictures = (decode(path.read_bytes()).rgb_HWC for path in paths)
    found = [crop(one, SIDE_PX) for one in pictures if min(one.shape[:2]) >= SIDE_PX]
    return found[::max(len(found) // MOST, 1)][:MOST]


def table(pictures: list[Rgb]) -> dict[str, dict[str, list[float]]]:
    """Measure -> degradation -> [median, share of pairs in which it is larger than as it is]."""
    from pipelines.stages.measures import measure, tiles

    def columns(some: list[Rgb]) -> dict[str, np.ndarray]:
        rows = [measure(one, grey := tiles.luma(one), tiles.halved(grey, tiles.SMALL_PX), 0, None)
                for one in map(np.ascontiguousarray, some)]
        return {name: np.array([row[name] for row in rows if row[name] is not None], float) for name in rows[0]}

    found = {name: columns([degrade(one) for one in pictures]) for name, degrade in DEGRADED.items()}
    found["collage"] = columns(collages(pictures))
    plain = found["as it is"]
    told = [name for name in plain if len(plain[name]) and name != "bits_per_pixel"]
    return {name: {how: _told(plain[name], one[name]) for how, one in found.items() if len(one[name])} for name in told}


def _told(plain: np.ndarray, values: np.ndarray) -> list[float]:
    more = (values[:, None] > plain).mean() + (values[:, None] == plain).mean() / 2
    return [float(f"{np.median(values):.3g}"), round(float(more), 2)]


def markdown(found: dict[str, dict[str, list[float]]]) -> str:
    shown = ("sharpness", "noise", "overshoot", "cutoff", "blockiness", "border_px", "seam", "repeats")
    lines = ["| | " + " | ".join(shown) + " |", "| --- " * (len(shown) + 1) + "|"]
    for how in found["sharpness"]:
        cells = [found[name].get(how) for name in shown]
        lines.append(f"| {how} | " + " | ".join(f"{cell[0]:.3g} ({cell[1]:.2f})" if cell else "—" for cell in cells) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=ROOT / "examples" / "photos")
    parser.add_argument("--markdown", action="store_true", help="a table for a person")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    pictures = squares(args.photos)
    found = table(pictures)
    print(markdown(found) if args.markdown else json.dumps({"benchmark": "measures", "images": len(pictures), "measures": found}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
