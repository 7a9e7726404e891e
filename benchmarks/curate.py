#!/usr/bin/env python3
"""Measuring a photograph beside decoding it. Prints one JSON line.

    python benchmarks/curate.py [--size 1024] [--rounds 15]

Interleaved, round after round, because rates drift; CPU time of one thread, medians over the rounds of the time for all photographs:
`decode`: nothing but the fastest decoder at hand; `loop`: the plain PIL + OpenCV loop of three measures (sharpness, flatness, pHash) that
one would write; `ours`: the stage itself, from a table of bytes to a table of scores. `shares`: what each part of `ours` takes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT / "examples" / "photos"
QUALITY = 95
FAULTY = "bad_"


def encoded(size_px: int, folder: Path) -> list[bytes]:
    """The photographs of a folder, cropped to squares from what is nearest to their native resolution, as JPEGs of quality 95."""
    from supir_model.images import crop, decode, encode_jpeg, resize_short_side

    paths = sorted(path for path in folder.iterdir() if path.suffix == ".jpg" and not path.name.startswith(FAULTY))
    squares = [crop(resize_short_side(decode(path.read_bytes()).rgb_HWC, size_px), size_px) for path in paths]
    return [encode_jpeg(rgb_HWC, quality=QUALITY) for rgb_HWC in squares]


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """Bytes -> RGB, by what is installed."""
    import cv2
    from PIL import Image

    found: dict[str, Callable[[bytes], Any]] = {
        "opencv": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB),
        "pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    }
    try:
        import simplejpeg
    except ImportError:
        return found
    return found | {"simplejpeg": lambda data: simplejpeg.decode_jpeg(data, colorspace="RGB")}


def plain_loop(data: bytes) -> tuple[float, float, Any]:
    """Three measures with the usual calls."""
    import cv2
    from PIL import Image

    grey_HW = cv2.cvtColor(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), cv2.COLOR_RGB2GRAY)
    sharpness = cv2.Laplacian(grey_HW, cv2.CV_64F).var()
    magnitude_HW = cv2.magnitude(cv2.Sobel(grey_HW, cv2.CV_64F, 1, 0), cv2.Sobel(grey_HW, cv2.CV_64F, 0, 1))
    side = 128
    tiles = [magnitude_HW[y:y + side, x:x + side].var() for y in range(0, grey_HW.shape[0], side) for x in range(0, grey_HW.shape[1], side)]
    small = cv2.dct(cv2.resize(grey_HW, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32))[:8, :8]
    return float(sharpness), float(np.mean(np.array(tiles) < 10)), small > np.median(small)


def our_stage(data: list[bytes]) -> Callable[[], None]:
    """The stage on a table of these bytes."""
    import pyarrow as pa

    from pipelines.stages.scores import Scores

    ids = [f"{i:064x}" for i in range(len(data))]
    rows = {"images": pa.table({"image_id": ids, "source_id": ids, "bytes": pa.array(data, pa.binary())})}
    stage = Scores(max_pixels=10**8)
    stage.setup()

    def run() -> None:
        assert stage.process(rows, {}).table.num_rows == len(data), "every photograph is measured"

    return run


def seconds(function: Callable[[], object]) -> float:
    """CPU time: other processes may share the machine."""
    start = time.process_time()
    function()
    return time.process_time() - start


def parts(data: list[bytes]) -> dict[str, Callable[[], object]]:
    """Each measure on all photographs, with what it needs made before."""
    from pipelines.stages.hashes import measure_hashes
    from pipelines.stages.measures import composition, compression, detail, edges, exposure, rows, spectrum, text, tiles
    from supir_model.images import decode

    decoded = [decode(one) for one in data]
    rgb, tables = [one.rgb_HWC for one in decoded], [one.info.luminance_table for one in decoded]
    grey = [tiles.luma(one) for one in rgb]
    small = [tiles.halved(one, tiles.SMALL_PX) for one in grey]
    steps, some = [tiles.steps(one) for one in grey], [rows.some_rows(one) for one in grey]
    laplacian = [detail.laplacian_tiles(one) for one in some]

    def light(rgb_HWC: Any, grey_HW: Any) -> None:
        levels, colours = exposure.levels(grey_HW), exposure.some_colours(rgb_HWC)
        exposure.entropy(levels), exposure.dark_share(levels), exposure.bright_share(levels)
        exposure.colourfulness(colours), exposure.saturation(colours)

    def each(function: Callable[..., object], *columns: list[Any]) -> Callable[[], object]:
        return lambda: [function(*row) for row in zip(*columns, strict=True)]

    return {
        "decode": each(decode, data), "luma": each(tiles.luma, rgb), "steps": each(tiles.steps, grey),
        "rows of tiles": each(rows.some_rows, grey),
        "sharpness": each(lambda h: detail.sharpness(detail.laplacian_tiles(h)), some), "flatness": each(detail.flatness, some),
        "noise": each(detail.noise, some), "overshoot": each(edges.overshoot, grey),
        "cutoff": each(lambda g, tile: spectrum.cutoff(g, tile, 1.0), grey, laplacian), "blockiness": each(compression.blockiness, steps),
        "jpeg_quality": each(compression.jpeg_quality, tables), "exposure, colour": each(light, rgb, grey),
        "border_px": each(composition.border_px, grey), "seam": each(composition.seam, steps), "repeats": each(composition.repeats, steps),
        "halved": each(lambda g: tiles.halved(g, tiles.SMALL_PX), grey), "text_area": each(text.text_area, small),
        "phash": each(measure_hashes, small),
    }


def measure(data: list[bytes], rounds: int) -> dict[str, Any]:
    """Medians over interleaved rounds."""
    known = decoders()
    runs: dict[str, Callable[[], object]] = {f"decode {name}": lambda f=f: [f(one) for one in data] for name, f in known.items()}
    runs |= {"loop": lambda: [plain_loop(one) for one in data], "ours": our_stage(data)}
    runs |= {f"part {name}": run for name, run in parts(data).items()}
    for run in runs.values():
        run()  # warm
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    ms = {name: 1e3 * median(some) / len(data) for name, some in times.items()}
    fastest = min(known, key=lambda name: ms[f"decode {name}"])
    pure = times[f"decode {fastest}"]
    return {
        "images": len(data), "bytes_mean": sum(map(len, data)) // len(data), "rounds": rounds, "fastest_decoder": fastest,
        "images_per_s": {key.split()[0]: round(1e3 / ms[key], 1) for key in (f"decode {fastest}", "loop", "ours")},
        "ours_to_decode": round(median(d / o for d, o in zip(pure, times["ours"])), 3),
        "loop_to_decode": round(median(d / o for d, o in zip(pure, times["loop"])), 3),
        "shares": {name.removeprefix("part "): round(one / ms["ours"], 3) for name, one in ms.items() if name.startswith("part ")},
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the photographs, in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="a folder of JPEGs")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    import cv2

    cv2.setNumThreads(1)
    result: dict[str, Any] = {"benchmark": "curate", "size_px": args.size, "quality": QUALITY}
    result |= measure(encoded(args.size, args.photos), args.rounds)
    result |= {"threads": 1, "cores": os.cpu_count(), "opencv": cv2.__version__, "numpy": np.__version__, "machine": platform.machine()}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
