#!/usr/bin/env python3
"""Near-duplicates and contamination: recall by transform, false matches, and what the index costs. Prints one JSON line.

    python benchmarks/duplicates.py [--photos FOLDER] [--hashes 1000000] [--radius 31] [--exclude-radius 40]

Recall: of the photographs of the folder, how many of their changed forms are found, through the tables' columns and the index with its
bands, as the job finds them. `duplicates`: both pictures stand in the corpus. `tests`: the photograph stands in a test set, its changed
form in the corpus. False matches: pairs of different photographs (copies inside the folder, by a hash within 64 bits, are put aside)
that either would take for one another, and the least distance between two. `index`: distinct random hashes, near to none, each with
its mirror image and two crops, which is the longest work there is; `skew` is how much fuller the buckets of photographs are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT / "examples" / "photos"
FAULTY = "bad_"
SAME_BITS = 64  # choice: far below what lies between different photographs (measured: 90), far above what copies differ in


def photographs(folder: Path) -> list[Any]:
    """rgb_HWC of every picture in a folder that can be decoded."""
    from supir_model.images import ImageError, decode

    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(FAULTY):
            try:
                found.append(decode(path.read_bytes()).rgb_HWC)
            except ImageError:
                continue
    return found


def transforms() -> dict[str, Callable[[Any], Any]]:
    """Name -> rgb_HWC to rgb_HWC."""
    import cv2

    def scaled(rgb: Any, factor: float, how: int = cv2.INTER_AREA) -> Any:
        return cv2.resize(rgb, (max(round(rgb.shape[1] * factor), 1), max(round(rgb.shape[0] * factor), 1)), interpolation=how)

    def jpeg(rgb: Any, quality: int) -> Any:
        return cv2.imdecode(cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)

    def crop(rgb: Any, share: float, top: float = 0.5, left: float = 0.5) -> Any:
        height, width = round(rgb.shape[0] * share), round(rgb.shape[1] * share)
        y, x = round((rgb.shape[0] - height) * top), round((rgb.shape[1] - width) * left)
        return rgb[y:y + height, x:x + width]

    def bad(rgb: Any) -> Any:
        small = cv2.GaussianBlur(scaled(rgb, 0.25), (0, 0), 1).astype(np.float64)
        return jpeg(np.clip(small + np.random.default_rng(0).normal(0, 15, small.shape), 0, 255).astype(np.uint8), 30)

    return {
        "rescaled x0.5": lambda rgb: scaled(rgb, 0.5), "rescaled x0.25": lambda rgb: scaled(rgb, 0.25),
        "rescaled x0.25, bicubic without a filter": lambda rgb: scaled(rgb, 0.25, cv2.INTER_CUBIC),
        "rescaled x0.125": lambda rgb: scaled(rgb, 0.125), "squashed to 512 x 512": lambda rgb: cv2.resize(rgb, (512, 512)),
        "JPEG quality 50": lambda rgb: jpeg(rgb, 50), "JPEG quality 30": lambda rgb: jpeg(rgb, 30),
        "JPEG quality 10": lambda rgb: jpeg(rgb, 10),
        "blur, sigma 3 px": lambda rgb: cv2.GaussianBlur(rgb, (0, 0), 3), "blur, x0.25, noise 15, JPEG 30": bad,
        "gamma 1.2": lambda rgb: (255 * (rgb / 255) ** 1.2).astype(np.uint8),
        "grey": lambda rgb: rgb @ np.array([0.299, 0.587, 0.114], np.float32),
        "mirrored": lambda rgb: rgb[:, ::-1], "turned by 90 degrees": lambda rgb: np.rot90(rgb),
        "mirrored, x0.5, JPEG 50": lambda rgb: jpeg(scaled(rgb[:, ::-1], 0.5), 50),
        "centre crop 98 %": lambda rgb: crop(rgb, 0.98), "centre crop 95 %": lambda rgb: crop(rgb, 0.95),
        "centre crop 90 %": lambda rgb: crop(rgb, 0.9), "centre crop 75 %": lambda rgb: crop(rgb, 0.75),
        "corner crop 95 %": lambda rgb: crop(rgb, 0.95, 0, 0), "corner crop 75 %": lambda rgb: crop(rgb, 0.75, 1, 0),
        "corner crop 75 %, mirrored, x0.5, JPEG 50": lambda rgb: jpeg(scaled(crop(rgb, 0.75, 0, 1)[:, ::-1], 0.5), 50),
        "cut to a square": lambda rgb: rgb[:min(rgb.shape[:2]), :min(rgb.shape[:2])],
        "crop 85 % at a third": lambda rgb: crop(rgb, 0.85, 0.33, 0.33), "centre crop 60 %": lambda rgb: crop(rgb, 0.6),
    }


def columns(pictures: list[Any]) -> dict[str, Any]:
    """What the scores table holds of them: own_N4, crops, quality_N."""
    from pipelines.stages.hashes import CROPS, WORDS, measure_hashes, to_words
    from pipelines.stages.measures.tiles import luma

    made = []
    for rgb in pictures:
        rgb = rgb if rgb.ndim == 3 else np.repeat(rgb[:, :, None], 3, axis=2)
        made.append(measure_hashes(luma(np.ascontiguousarray(rgb.astype(np.uint8)))))
    crops = to_words(bytes.fromhex("".join(one["phash_crops"] for one in made))).reshape(-1, len(CROPS), WORDS)
    return {"own_N4": to_words(bytes.fromhex("".join(one["phash"] for one in made))),
            "quality_N": np.array([one["phash_quality"] for one in made]),
            "crops": tuple(np.ascontiguousarray(crops[:, n]) for n in range(len(CROPS)))}


def found_pairs(own: dict[str, Any], other: dict[str, Any], radius: int) -> Any:
    """N x M: whether the corpus takes one of `own` and one of `other` for copies."""
    from pipelines import duplicates

    forms = duplicates.Forms(own_N4=np.concatenate([own["own_N4"], other["own_N4"]]),
                             crops=tuple(np.concatenate(both) for both in zip(own["crops"], other["crops"])))
    count = len(own["own_N4"])
    rows = np.arange(len(forms.own_N4))
    pairs = duplicates._all_better(forms, rows, rows, radius)
    assert pairs is not None, "a folder of photographs has few pairs"
    near = np.zeros((count, len(rows) - count), dtype=bool)
    across = (pairs[0] >= count) & (pairs[1] < count)
    near[pairs[1][across], pairs[0][across] - count] = True
    return near


def found_tests(test_forms: tuple[Any, Any], other: dict[str, Any], count: int, radius: int) -> Any:
    """N x M: whether one of `other` in the corpus is taken for a test picture."""
    from pipelines.duplicates import matches

    near = np.zeros((count, len(other["own_N4"])), dtype=bool)
    for rows, of in matches(other["own_N4"], test_forms[0], radius):
        near[test_forms[1][of], rows] = True
    return near


def recall(pictures: list[Any], radius: int, exclude_radius: int) -> dict[str, Any]:
    """Per transform the share that is found; false matches; quality."""
    from pipelines.contamination import CROP_SHARES
    from pipelines.stages.hashes import LEAST_QUALITY, cropped_hashes, distance, eight_forms
    from pipelines.stages.measures.tiles import luma

    own = columns(pictures)
    forms = [eight_forms(cropped_hashes(luma(rgb), CROP_SHARES)) for rgb in pictures]
    tests = np.concatenate(forms), np.repeat(np.arange(len(forms)), [len(one) for one in forms])
    turned = eight_forms(own["own_N4"]).reshape(8, len(pictures), -1)
    apart = np.min([distance(own["own_N4"][:, None], form[None]) for form in turned], axis=0)
    different = apart > SAME_BITS
    table, false_duplicates, false_tests = {}, 0, 0
    for name, change in transforms().items():
        other = columns([change(rgb) for rgb in pictures])
        clear = (own["quality_N"] >= LEAST_QUALITY) & (other["quality_N"] >= LEAST_QUALITY)
        near, near_tests = found_pairs(own, other, radius) & clear[None], (
            found_tests(tests, other, len(pictures), exclude_radius) & clear[None])
        table[name] = {"duplicates": round(float(np.diag(near).mean()), 3), "tests": round(float(np.diag(near_tests).mean()), 3)}
        false_duplicates += int((near & different).sum())
        false_tests += int((near_tests & different).sum())
    upper = np.triu(different, k=1)
    return {"photographs": len(pictures), "recall": table, "pairs_of_different": int(upper.sum()),
            "pairs_tried": int(different.sum()) * len(table),
            "false_duplicates": false_duplicates, "false_tests": false_tests, "least_distance": int(apart[upper].min()),
            "mean_distance": round(float(distance(own["own_N4"][:, None], own["own_N4"][None])[upper].mean()), 1),
            "least_quality": round(float(own["quality_N"].min()), 2),
            "skew": skew(own["own_N4"], upper), "forms_of_a_test_picture": len(forms[0]),
            "ms_of_the_hash": hash_ms(pictures)}


def hash_ms(pictures: list[Any]) -> float:
    """Mean time for the three columns of a picture, from its luma."""
    from pipelines.stages.hashes import measure_hashes
    from pipelines.stages.measures.tiles import luma

    greys = [luma(rgb) for rgb in pictures]
    start = time.process_time()
    for grey in greys:
        measure_hashes(grey)
    return round((time.process_time() - start) / len(greys) * 1e3, 2)


def skew(own_N4: Any, upper: Any) -> float:
    """How much more often two different photographs share a band than random hashes do."""
    bands = np.ascontiguousarray(own_N4).view(np.uint16)
    shared = sum((bands[:, None, band] == bands[None, :, band])[upper].mean() for band in range(bands.shape[1]))
    return round(float(shared / bands.shape[1] * 2**16), 2)


def index(count: int, radius: int) -> dict[str, Any]:
    """Time and memory of `near_losers` on random hashes, and of their match with the forms of 100 test pictures."""
    from pipelines.duplicates import Forms, matches, near_losers

    rng = np.random.default_rng(0)
    one, *crops = (rng.integers(0, 2**64, (count, 4), dtype=np.uint64) for _ in range(3))
    tests = rng.integers(0, 2**64, (100 * 888, 4), dtype=np.uint64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    lost = sum(1 for _ in near_losers(Forms(own_N4=one, crops=tuple(crops)), radius))
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    matched = sum(len(left) for left, _ in matches(one, tests, radius, first=True))
    return {"hashes": count, "seconds": round(seconds, 1), "bytes_a_row_held": 96,
            "bytes_a_row_more_at_peak": round((after - before) * 1024 / count),
            "lost": lost, "tests_seconds": round(time.perf_counter() - start, 1), "tests_matched": matched}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="a folder of photographs")
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--radius", type=int, default=31)
    parser.add_argument("--exclude-radius", type=int, default=40)
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    import cv2

    cv2.setNumThreads(1)
    result: dict[str, Any] = {"benchmark": "duplicates", "radius": args.radius, "exclude_radius": args.exclude_radius}
    if args.hashes:
        result["index"] = index(args.hashes, args.radius)
    result |= recall(photographs(args.photos), args.radius, args.exclude_radius)
    result |= {"threads": 1, "cores": os.cpu_count(), "opencv": cv2.__version__, "numpy": np.__version__, "machine": platform.machine()}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
