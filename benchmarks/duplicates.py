#!/usr/bin/env python3
"""Near-duplicates and contamination: recall by transform, false matches, and what the index costs. Prints one JSON line.

    python benchmarks/duplicates.py [--photos FOLDER] [--hashes 1000000] [--threads 1] [--index-only]

Recall: of the photographs of the folder, how many of their changed forms are near to them, through the tables' columns; what is near is
found by the index (a law of the tests). `duplicates`: both pictures stand in the corpus. `tests`: the photograph stands in a test set,
its changed form in the corpus. `recall_of_parts`: the photograph stands in the corpus, what was cut out of it in a test set. False
matches: pairs of different photographs (copies inside the folder, by a hash within 64 bits, are put aside) that either would take for one
another, and the least distance between two. `index`: distinct random hashes, near to none, each with its other forms, which is the
longest work there is; `skew` is how much more often photographs share a key.
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


def crop(rgb: Any, share: float, top: float = 0.5, left: float = 0.5) -> Any:
    """The share of both sides; 0 is the begin, 1 the end."""
    height, width = round(rgb.shape[0] * share), round(rgb.shape[1] * share)
    y, x = round((rgb.shape[0] - height) * top), round((rgb.shape[1] - width) * left)
    return rgb[y:y + height, x:x + width]


def square(rgb: Any, share: float = 1, top: float = 0.5, left: float = 0.5) -> Any:
    """A square, of a share of the shorter side."""
    side = round(share * min(rgb.shape[:2]))
    y, x = round((rgb.shape[0] - side) * top), round((rgb.shape[1] - side) * left)
    return rgb[y:y + side, x:x + side]


def anywhere(rgb: Any) -> tuple[float, float]:
    """A place that is this picture's own."""
    top, left = np.random.default_rng(rgb.size).random(2)
    return float(top), float(left)


def cut_out() -> dict[str, Callable[[Any], Any]]:
    """Name -> how a smaller picture is cut out of a larger one: rgb_HWC to rgb_HWC."""
    import cv2

    def squashed(rgb: Any) -> Any:
        small = cv2.resize(rgb, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        return cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR)

    return {
        "square of the shorter side, middle": square, "square of the shorter side, begin": lambda rgb: square(rgb, 1, 0, 0),
        "square of the shorter side, anywhere": lambda rgb: square(rgb, 1, *anywhere(rgb)),
        "square of 75 %, middle": lambda rgb: square(rgb, 0.75), "square of 60 %, middle": lambda rgb: square(rgb, 0.6),
        "square of 45 %, middle, mirrored, x0.5, JPEG 50": lambda rgb: squashed(square(rgb, 0.45)[:, ::-1]),
        "square of 37 %, middle": lambda rgb: square(rgb, 0.37), "square of 30 %, middle": lambda rgb: square(rgb, 0.3),
        "square of 50 %, anywhere": lambda rgb: square(rgb, 0.5, *anywhere(rgb)),
        "frame of 90 %, anywhere": lambda rgb: crop(rgb, 0.9, *anywhere(rgb)),
        "frame of 85 %, anywhere": lambda rgb: crop(rgb, 0.85, *anywhere(rgb)),
        "frame of 75 %, anywhere": lambda rgb: crop(rgb, 0.75, *anywhere(rgb)),
        "frame of 75 %, middle": lambda rgb: crop(rgb, 0.75), "frame of 50 %, middle": lambda rgb: crop(rgb, 0.5),
        "frame of 75 %, corner": lambda rgb: crop(rgb, 0.75, 1, 0), "frame of 50 %, corner": lambda rgb: crop(rgb, 0.5, 1, 0),
        "frame of 75 %, anywhere, mirrored, x0.5, JPEG 50": lambda rgb: squashed(crop(rgb, 0.75, *anywhere(rgb))[:, ::-1]),
    }


def transforms() -> dict[str, Callable[[Any], Any]]:
    """Name -> rgb_HWC to rgb_HWC."""
    import cv2

    def scaled(rgb: Any, factor: float, how: int = cv2.INTER_AREA) -> Any:
        return cv2.resize(rgb, (max(round(rgb.shape[1] * factor), 1), max(round(rgb.shape[0] * factor), 1)), interpolation=how)

    def jpeg(rgb: Any, quality: int) -> Any:
        return cv2.imdecode(cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)

    def cut(rgb: Any, top: float = 0.0, bottom: float = 0.0, left: float = 0.0, right: float = 0.0) -> Any:
        height, width = rgb.shape[:2]
        return rgb[round(height * top):round(height * (1 - bottom)), round(width * left):round(width * (1 - right))]

    def rectangle(rgb: Any) -> Any:
        rng = np.random.default_rng(rgb.size)
        shares, places = rng.uniform(0.7, 1, 2), rng.random(2)
        (top, left), (bottom, right) = (1 - shares) * places, (1 - shares) * (1 - places)
        return cut(rgb, top, bottom, left, right)

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
        "corner crop 95 %": lambda rgb: crop(rgb, 0.95, 0, 0), "corner crop 90 %": lambda rgb: crop(rgb, 0.9, 1, 1),
        "crop 95 % at any place": lambda rgb: crop(rgb, 0.95, *anywhere(rgb)),
        "crop 90 % at any place": lambda rgb: crop(rgb, 0.9, *anywhere(rgb)),
        "5 % cut off below": lambda rgb: cut(rgb, bottom=0.05), "10 % cut off below": lambda rgb: cut(rgb, bottom=0.1),
        "20 % cut off below": lambda rgb: cut(rgb, bottom=0.2), "20 % cut off on the left": lambda rgb: cut(rgb, left=0.2),
        "10 % cut off above, 20 % on the right": lambda rgb: cut(rgb, top=0.1, right=0.2),
        "any rectangle, 70 to 100 % of each side": rectangle,
        "any rectangle, mirrored, x0.5, JPEG 50": lambda rgb: jpeg(scaled(rectangle(rgb)[:, ::-1], 0.5), 50),
        "corner crop 75 %": lambda rgb: crop(rgb, 0.75, 1, 0),
        "corner crop 75 %, mirrored, x0.5, JPEG 50": lambda rgb: jpeg(scaled(crop(rgb, 0.75, 0, 1)[:, ::-1], 0.5), 50),
        "cut to a square": lambda rgb: rgb[:min(rgb.shape[:2]), :min(rgb.shape[:2])],
        "crop 85 % at a third": lambda rgb: crop(rgb, 0.85, 0.33, 0.33), "centre crop 60 %": lambda rgb: crop(rgb, 0.6),
    }


def columns(pictures: list[Any]) -> Any:
    """The scores of them, as far as copies are sought by them."""
    import pyarrow as pa

    from pipelines.stages.hashes import measure_hashes
    from pipelines.stages.measures.tiles import luma

    made = []
    for rgb in pictures:
        rgb = rgb if rgb.ndim == 3 else np.repeat(rgb[:, :, None], 3, axis=2)
        made.append(measure_hashes(luma(np.ascontiguousarray(rgb.astype(np.uint8)))))
    return pa.Table.from_pylist(made)


def found_pairs(own_NF4: Any, other_MF4: Any, radius: int) -> Any:
    """N x M: whether the corpus takes one of `own` and one of `other` for copies: every pair alone, as if nothing else were there."""
    from pipelines.stages.hashes import flipped_distance

    def near(one_N4: Any, forms_MF4: Any) -> Any:
        return np.stack([flipped_distance(one[None, None], forms_MF4).min(axis=1) for one in one_N4]) <= radius

    return near(own_NF4[:, 0], other_MF4) | near(other_MF4[:, 0], own_NF4).T


def found_tests(tests: Any, words_M4: Any, radius: int) -> Any:
    """N x M: whether one of `words` in the corpus is taken for a test picture."""
    from pipelines.stages.hashes import flipped_distance

    near = np.zeros((len(tests.names), len(words_M4)), dtype=bool)
    for m, one in enumerate(words_M4):
        near[tests.owner_M[flipped_distance(one[None], tests.words_M4) <= radius], m] = True
    return near


def recall(pictures: list[Any], radius: int, exclude_radius: int) -> dict[str, Any]:
    """Per transform the share that is found; false matches; quality."""
    from pipelines.contamination import TestPictures, boxes
    from pipelines.corpus_facts import forms_of
    from pipelines.stages.hashes import LEAST_QUALITY, cropped_hashes, distance, flipped_distance, turned
    from pipelines.stages.measures.tiles import luma

    own = columns(pictures)
    own_NF4, quality_N = forms_of(own), own["phash_quality"].to_numpy()
    crops = [cropped_hashes(luma(rgb), boxes(*rgb.shape[:2])) for rgb in pictures]
    forms = [np.concatenate([one, turned(one)]) for one in crops]
    tests = TestPictures(names=[str(n) for n in range(len(forms))], words_M4=np.concatenate(forms),
                         owner_M=np.repeat(np.arange(len(forms)), [len(one) for one in forms]))
    apart = np.minimum(*(flipped_distance(own_NF4[:, None, 0], form[None]) for form in (own_NF4[:, 0], own_NF4[:, 1])))
    different = apart > SAME_BITS
    table, false_duplicates, false_tests = {}, 0, 0
    for name, change in transforms().items():
        other = columns([change(rgb) for rgb in pictures])
        other_NF4 = forms_of(other)
        clear = ((quality_N >= LEAST_QUALITY) & (other["phash_quality"].to_numpy() >= LEAST_QUALITY))[None]
        near, near_tests = found_pairs(own_NF4, other_NF4, radius) & clear, found_tests(tests, other_NF4[:, 0], exclude_radius) & clear
        table[name] = {"duplicates": round(float(np.diag(near).mean()), 3), "tests": round(float(np.diag(near_tests).mean()), 3)}
        false_duplicates += int((near & different).sum())
        false_tests += int((near_tests & different).sum())
    upper = np.triu(different, k=1)
    return {"photographs": len(pictures), "recall": table, "pairs_of_different": int(upper.sum()),
            "pairs_tried": int(different.sum()) * len(table),
            "false_duplicates": false_duplicates, "false_tests": false_tests, "least_distance": int(apart[upper].min()),
            "mean_distance": round(float(distance(own_NF4[:, None, 0], own_NF4[None, :, 0])[upper].mean()), 1),
            "least_quality": round(float(quality_N.min()), 2),
            "skew": skew(own_NF4[:, 0], upper), "forms_of_a_test_picture": round(len(tests.words_M4) / len(forms)),
            "ms_of_the_hash": hash_ms(pictures)}


def recall_of_parts(pictures: list[Any], radius: int, strangers: int = 8) -> dict[str, Any]:
    """Per way of cutting the share of photographs that are found when what was cut out stands in a test set; and how many others are
    taken for it, of so many each."""
    from pipelines.contamination import boxes
    from pipelines.corpus_facts import shown_by
    from pipelines.stages.hashes import LEAST_QUALITY, cropped_hashes, flipped_distance, turned
    from pipelines.stages.measures.tiles import luma

    own = columns(pictures)
    own_NK4, clear_N = shown_by(own), own["phash_quality"].to_numpy() >= LEAST_QUALITY
    whole_N4 = own_NK4[:, 0]
    table, false, tried = {}, 0, 0
    for name, change in cut_out().items():
        found = 0
        for n, rgb in enumerate(pictures):
            grey = luma(np.ascontiguousarray(change(rgb)))
            forms = cropped_hashes(grey, boxes(*grey.shape))
            forms = np.concatenate([forms, turned(forms)])
            near = [bool(len(forms) and clear_N[m] and flipped_distance(own_NK4[m][:, None], forms[None]).min() <= radius)
                    for m in (n, *others(n, whole_N4, strangers))]
            found, false, tried = found + near[0], false + sum(near[1:]), tried + len(near) - 1
        table[name] = round(found / len(pictures), 3)
    return {"recall_of_parts": table, "false_parts": false, "parts_tried": tried}


def others(n: int, whole_N4: Any, count: int) -> list[int]:
    """So many pictures after this one that are no copies of it."""
    from pipelines.stages.hashes import flipped_distance, turned

    both = (whole_N4[n][None], turned(whole_N4[n][None]))
    apart = np.minimum(*(flipped_distance(whole_N4, one) for one in both))
    after = [m % len(whole_N4) for m in range(n + 1, n + len(whole_N4))]
    return [m for m in after if apart[m] > SAME_BITS][:count]


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
    """How much more often two different photographs share a key than random hashes do."""
    from pipelines.covering import MOST_PARTS, parts
    from pipelines.duplicates import CERTAIN

    def shared(words_N4: Any) -> float:
        keys = (part.keys(part.values(words_N4), mask) for part in parts(MOST_PARTS, CERTAIN) for mask in part.masks)
        return float(np.mean([(one[:, None] == one[None])[upper].mean() for one in keys]))

    return round(shared(own_N4) / (shared(np.random.default_rng(0).integers(0, 2**64, own_N4.shape, np.uint64)) or 1e-9), 2)


def index(count: int, radius: int, threads: int) -> dict[str, Any]:
    """Time and memory of `near_losers` on random hashes, and of their match with the forms of 100 test pictures."""
    from pipelines.contamination import TestPictures, boxes, contaminated
    from pipelines.covering import chosen_parts
    from pipelines.duplicates import CERTAIN, near_losers
    from pipelines.stages.hashes import CROPS, PARTS

    rng = np.random.default_rng(0)
    forms = 2 + len(CROPS)
    words = rng.integers(0, 2**64, (count, forms, 4), dtype=np.uint64)
    each = 2 * sum(1 for _ in boxes(1, 1))
    tests = TestPictures(names=[str(n) for n in range(100)], words_M4=rng.integers(0, 2**64, (100 * each, 4), dtype=np.uint64),
                         owner_M=np.repeat(np.arange(100), each))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    lost = sum(1 for _ in near_losers(words, np.arange(count), radius, threads))
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, own = time.perf_counter(), np.ascontiguousarray(words[:, :1 + PARTS])
    shown = contaminated(np.zeros(count, "S1"), own, np.ones(count, bool), tests, 40, threads)
    return {"hashes": count, "forms": forms, "threads": threads, "seconds": round(seconds, 1), "cpu_seconds": round(cpu_s, 1),
            "tables": sum(len(part.masks) for part in chosen_parts(CERTAIN, count, count * (forms - 1))),
            "bytes_a_row_held": words.nbytes // count, "bytes_a_row_more_at_peak": round((after - before) * 1024 / count),
            "lost": lost, "forms_of_a_test_picture": each,
            "tests_seconds": round(time.perf_counter() - start, 1), "tests_matched": len(shown)}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="a folder of photographs")
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--index-only", action="store_true")
    parser.add_argument("--radius", type=int, default=31)
    parser.add_argument("--exclude-radius", type=int, default=40)
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    import cv2

    cv2.setNumThreads(1)
    result: dict[str, Any] = {"benchmark": "duplicates", "radius": args.radius, "exclude_radius": args.exclude_radius}
    if args.hashes:
        result["index"] = index(args.hashes, args.radius, args.threads)
    if not args.index_only:
        pictures = photographs(args.photos)
        result |= recall(pictures, args.radius, args.exclude_radius) | recall_of_parts(pictures, args.exclude_radius)
    result |= {"cores": os.cpu_count(), "opencv": cv2.__version__, "numpy": np.__version__, "machine": platform.machine()}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
