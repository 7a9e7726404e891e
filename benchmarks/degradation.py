#!/usr/bin/env python3
"""Real-ESRGAN's degradation, ours beside its published code and beside a quick OpenCV loop. Prints one JSON line.

    python benchmarks/degradation.py [--size 512] [--rounds 7]

GT to LQ of a quarter of the side, one thread, processor time (others may share the machine); sides in turn, batches of four, the ratio
is the median over the rounds. Sharpening, which Real-ESRGAN puts before and SUPIR does not mention, and the enlarging back to the size of
the ground truth (SUPIR Sec. 4.1) are measured apart. The OpenCV loop takes the same drawn steps as ours and is looser (peers/prototype.py).
The published code runs where `basicsr` and `torchvision` are installed (`pip install --no-deps --no-build-isolation basicsr torchvision`
in an environment of its own, beside torch, numpy, scipy, opencv-python-headless and pillow); then its LQ pictures are compared with ours
as well: Kolmogorov-Smirnov distances of four measures of `--compare` pictures of either side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "examples" / "photos" / "forest_stream.jpg"
BATCH = 4
BACK_STEPS = 2  # the last ones of a draw: to the size of the ground truth, to 8 bits
COMPARED_PX = 256


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def picture(size_px: int) -> np.ndarray:
    from supir_model.images import crop, decode

    return crop(decode(PHOTO.read_bytes()).rgb_HWC, size_px).astype(np.float32) / np.float32(255)


def to_lq(seed: int, position: int, size_px: int) -> Any:
    """A draw without sharpening and without the way back."""
    from supir_model.degradation import draw
    from supir_model.degradation.steps import Sharpen

    params = draw("real_esrgan", seed, position, size_px)
    return replace(params, steps=tuple(s for s in params.steps[:-BACK_STEPS] if not isinstance(s, Sharpen)))


def tensor(x_HWC: np.ndarray, batch: int) -> Any:
    import torch

    return torch.from_numpy(x_HWC).permute(2, 0, 1)[None].repeat(batch, 1, 1, 1)


def rates(size_px: int, rounds: int, batches: int, published: Any) -> dict[str, Any]:
    """Images a second of each side, by round."""
    from benchmarks.peers.prototype import prototype
    from supir_model.degradation import degrade

    x_HWC = picture(size_px)
    x_BCHW = tensor(x_HWC, BATCH)
    found: dict[str, list[float]] = {}
    for done in range(rounds + 1):
        spent: dict[str, float] = dict.fromkeys(["ours", "prototype", *(["published"] if published else [])], 0.0)
        for first in range(0, batches * BATCH, BATCH):
            positions = range(first, first + BATCH)
            drawn = [to_lq(done, position, size_px) for position in positions]
            spent["ours"] += seconds(lambda p=positions, seed=done: [degrade(x_HWC, to_lq(seed, position, size_px)) for position in p])
            spent["prototype"] += seconds(lambda drawn=drawn: [prototype(x_HWC, params.steps) for params in drawn])
            if published:
                kernels = published.draw(BATCH)
                spent["published"] += seconds(lambda kernels=kernels: published.apply(x_BCHW, kernels))
        for name, value in spent.items() if done else ():  # the first round builds tables and fills caches
            found.setdefault(name, []).append(batches * BATCH / value)
        print(f"round {done} of {rounds}: {spent}", file=sys.stderr, flush=True)
    return found


def summary(found: dict[str, list[float]]) -> dict[str, Any]:
    ratios = {name: median(a / b for a, b in zip(found["ours"], values, strict=True)) for name, values in found.items() if name != "ours"}
    return {
        "images_per_s": {name: round(median(values), 1) for name, values in found.items()},
        "ours_to": {name: round(ratio, 2) for name, ratio in ratios.items()},
    }


def parts_ms(size_px: int, pictures: int) -> dict[str, float]:
    """Milliseconds of ours by kind of step, a picture."""
    from supir_model.degradation import draw
    from supir_model.degradation.kernels import is_separable
    from supir_model.degradation.operations import OPERATIONS
    from supir_model.degradation.steps import Blur

    spent: dict[str, float] = {}
    x_HWC = picture(size_px)
    for position in range(pictures):
        params, y_HWC = draw("real_esrgan", 0, position, size_px), x_HWC
        for i, step in enumerate(params.steps):
            name = type(step).__name__ + (" separable" if isinstance(step, Blur) and is_separable(step) else "")
            name = "back" if i >= len(params.steps) - BACK_STEPS else name
            start = time.process_time()
            y_HWC = OPERATIONS[type(step)](y_HWC, step, params)
            spent[name] = spent.get(name, 0.0) + time.process_time() - start
    return {name: round(value / pictures * 1e3, 2) for name, value in sorted(spent.items(), key=lambda item: -item[1])}


def sharpening_ms(size_px: int, rounds: int, published: Any) -> dict[str, float]:
    from supir_model.degradation.draws import SHARPEN
    from supir_model.degradation.operations import sharpen

    x_HWC, params = picture(size_px), to_lq(0, 0, size_px)
    sides: dict[str, Callable[[], object]] = {"ours": lambda: sharpen(x_HWC, SHARPEN, params)}
    if published:
        x_BCHW = tensor(x_HWC, BATCH)
        sides["published"] = lambda: published.basicsr.sharpen(x_BCHW)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(seconds(side) * 1e3 / (BATCH if name == "published" else 1))
    return {name: round(median(values), 1) for name, values in found.items()}


def measures(lq_HWC: np.ndarray, x_HWC: np.ndarray) -> list[float]:
    """PSNR of the enlarged LQ in dB, mean and contrast in levels, mean step between neighbours in levels."""
    import cv2

    back = np.clip(cv2.resize(lq_HWC, x_HWC.shape[1::-1], interpolation=cv2.INTER_CUBIC), 0, 1)
    step = (np.abs(np.diff(lq_HWC, axis=0)).mean() + np.abs(np.diff(lq_HWC, axis=1)).mean()) / 2
    return [float(-10 * np.log10(np.mean((back - x_HWC) ** 2))), float(lq_HWC.mean() * 255), float(lq_HWC.std() * 255), float(step * 255)]


def distances(count: int, published: Any) -> dict[str, Any]:
    """Whole chains, both from their own draws: the largest distance of the two distribution functions, for each measure."""
    from supir_model.degradation import degrade

    x_HWC = picture(COMPARED_PX)
    one_BCHW = tensor(x_HWC, 1)  # alone, so that the published code draws for each picture too
    ours = [measures(degrade(x_HWC, to_lq(99, position, COMPARED_PX)), x_HWC) for position in range(count)]
    theirs = [measures(published.apply(one_BCHW, published.draw(1))[0].permute(1, 2, 0).numpy(), x_HWC) for _ in range(count)]
    found = {}
    for name, a, b in zip(("psnr", "mean", "contrast", "step"), np.transpose(ours), np.transpose(theirs), strict=True):
        at = np.sort(np.concatenate([a, b]))
        gap = np.abs(np.searchsorted(np.sort(a), at, "right") - np.searchsorted(np.sort(b), at, "right")).max() / count
        found[name] = {"distance": round(float(gap), 3), "ours": round(mean(a), 2), "published": round(mean(b), 2)}
    return {"pictures": count, "size_px": COMPARED_PX, "critical_1_percent": round(1.63 * (2 / count) ** 0.5, 3), **found}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the ground truth, in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=12, help="batches of four in a round")
    parser.add_argument("--compare", type=int, default=300, help="pictures of each side whose distributions are compared")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    import cv2
    import torch

    from benchmarks.peers import published as peer

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    published = peer.Published(0) if peer.is_installed() else None
    result: dict[str, object] = {"benchmark": "degradation", "preset": "real_esrgan", "size_px": args.size, "lq_px": args.size // 4}
    result |= summary(rates(args.size, args.rounds, args.batches, published))
    result |= {"sharpening_ms": sharpening_ms(args.size, 5, published), "ours_by_step_ms": parts_ms(args.size, 60)}
    result |= {"distributions": distances(args.compare, published)} if published else {}
    result |= {"rounds": args.rounds, "pictures_a_round": args.batches * BATCH, "threads": 1, "machine": platform.machine()}
    result |= {"opencv": cv2.__version__, "numpy": np.__version__, "torch": torch.__version__}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
