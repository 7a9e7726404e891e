#!/usr/bin/env python3
"""The Real-ESRGAN degradation, ours beside a plain OpenCV + numpy pipeline of the same steps. Prints one JSON line.

    python benchmarks/degradation.py [--size 512] [--pictures 60] [--threads 1]

The peer applies the same drawn parameters with the usual calls: kernels padded to 21 x 21 through filter2D, GaussianBlur,
Generator.standard_normal and Generator.poisson. The two are interleaved picture by picture, because rates drift.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from math import ceil, log2
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "examples" / "photos" / "forest_stream.jpg"


def peer(x_HWC: np.ndarray, params: Any) -> np.ndarray:
    """One picture, float32 HWC in [0, 1], through the same steps without our fast paths."""
    rng = np.random.default_rng([params.seed, params.position])
    for step in params.steps:
        x_HWC = PEER[type(step).__name__](x_HWC, step, rng)
    return x_HWC


def peer_blur(x_HWC: np.ndarray, step: Any, _: np.random.Generator) -> np.ndarray:
    import cv2

    from supir_model.degradation.kernels import kernel

    padded = np.pad(kernel(step), (21 - step.size_px) // 2)
    return cv2.filter2D(x_HWC, -1, padded, borderType=cv2.BORDER_REFLECT_101)


def peer_resize(x_HWC: np.ndarray, step: Any, _: np.random.Generator) -> np.ndarray:
    import cv2

    mode = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[step.mode]
    return cv2.resize(x_HWC, (step.width, step.height), interpolation=mode)


def peer_gaussian(x_HWC: np.ndarray, step: Any, rng: np.random.Generator) -> np.ndarray:
    shape = (*x_HWC.shape[:2], 1 if step.grey else 3)
    return np.clip(x_HWC + rng.standard_normal(shape, dtype=np.float32) * np.float32(step.sigma / 255), 0, 1)


def peer_poisson(x_HWC: np.ndarray, step: Any, rng: np.random.Generator) -> np.ndarray:
    import cv2

    source = cv2.cvtColor(x_HWC, cv2.COLOR_RGB2GRAY)[..., None] if step.grey else x_HWC
    source = np.clip(np.rint(source * 255), 0, 255) / 255
    quanta = 2 ** ceil(log2(len(np.unique(source))))
    noise = (rng.poisson(source * quanta) / quanta - source).astype(np.float32)
    return np.clip(x_HWC + step.scale * noise, 0, 1)


def peer_jpeg(x_HWC: np.ndarray, step: Any, _: np.random.Generator) -> np.ndarray:
    import cv2

    bgr = cv2.cvtColor(np.clip(np.rint(x_HWC * 255), 0, 255).astype(np.uint8), cv2.COLOR_RGB2BGR)
    back = cv2.imdecode(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, step.quality])[1], cv2.IMREAD_COLOR)
    return cv2.cvtColor(back, cv2.COLOR_BGR2RGB).astype(np.float32) / 255


def peer_sharpen(x_HWC: np.ndarray, step: Any, _: np.random.Generator) -> np.ndarray:
    import cv2

    size_px = 2 * (step.radius_px // 2) + 1
    residual = x_HWC - cv2.GaussianBlur(x_HWC, (size_px, size_px), 0)
    soft = cv2.GaussianBlur((np.abs(residual) * 255 > step.threshold).astype(np.float32), (size_px, size_px), 0)
    return soft * np.clip(x_HWC + step.weight * residual, 0, 1) + (1 - soft) * x_HWC


def peer_round(x_HWC: np.ndarray, _step: Any, _: np.random.Generator) -> np.ndarray:
    return (np.clip(np.rint(x_HWC * 255), 0, 255) / 255).astype(np.float32)


PEER: dict[str, Callable[..., np.ndarray]] = {
    "Blur": peer_blur, "Sinc": peer_blur, "Resize": peer_resize, "Gaussian": peer_gaussian,
    "Poisson": peer_poisson, "Jpeg": peer_jpeg, "Sharpen": peer_sharpen, "Round": peer_round,
}  # fmt: skip


def milliseconds(function: Callable[[], object]) -> float:
    """CPU time: other processes may share the machine."""
    start = time.process_time()
    function()
    return (time.process_time() - start) * 1e3


def measure(size_px: int, pictures: int) -> dict[str, float]:
    from supir_model.degradation import degrade, draw
    from supir_model.images import crop, decode

    x_HWC = crop(decode(PHOTO.read_bytes()).rgb_HWC, size_px).astype(np.float32) / np.float32(255)
    drawn = [draw("real_esrgan", 0, position, size_px) for position in range(pictures)]
    for function in (degrade, peer):  # builds the tables, which takes 0.1 s for each power of two of quanta
        [function(x_HWC, params) for params in drawn]
    ours = [(milliseconds(lambda p=p: degrade(x_HWC, p)), milliseconds(lambda p=p: peer(x_HWC, p))) for p in drawn]
    draws = [milliseconds(lambda i=i: draw("real_esrgan", 1, i, size_px)) for i in range(200)]
    mean_ours, mean_peer = (sum(column) / pictures for column in zip(*ours, strict=True))
    return {
        "ours_cpu_ms": round(mean_ours, 2),
        "peer_cpu_ms": round(mean_peer, 2),
        "speedup": round(mean_peer / mean_ours, 2),
        "draw_cpu_ms": round(median(draws), 3),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[128, 512], help="sides of the pictures, in pixels")
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1, help="of OpenCV, torch and numpy")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    sys.path.insert(0, str(ROOT))
    import cv2
    import torch

    cv2.setNumThreads(args.threads)
    torch.set_num_threads(args.threads)
    result: dict[str, object] = {"benchmark": "degradation", "preset": "real_esrgan", "peer": "plain OpenCV + numpy, same steps"}
    result |= {f"{size}px": measure(size, args.pictures) for size in args.size}
    result |= {"threads_opencv": cv2.getNumThreads(), "threads_torch": torch.get_num_threads(), "threads_numpy": 1, "cores": os.cpu_count()}
    result |= {"opencv": cv2.__version__, "numpy": np.__version__, "torch": torch.__version__, "machine": platform.machine()}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
