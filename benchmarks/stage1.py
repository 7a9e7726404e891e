#!/usr/bin/env python3
"""A trained stage-1 encoder beside the prior's own, on held-out photographs under drawn degradations. Prints one JSON line.

    python benchmarks/stage1.py --corpus demo-output/corpus --encoder demo-output/encoder/encoder [--draws 4] [--crop 128]

For each photograph and draw: PSNR (dB, RGB) of D(E_dr(x_lq)) and of D(E(x_lq)), against the ground truth and against D(E(x_gt)), which is
what the loss aims at. The differences are paired; their standard error is over photographs, as the draws of one are not independent.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SEED = 20_000  # of no training


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--prior", default=str(ROOT / "priors" / "tiny"))
    parser.add_argument("--degradation", default="real_esrgan")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--short-side", type=int, default=192)
    print(json.dumps(measure(parser.parse_args(argv))))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from supir_model.prior import load_components
    from supir_model.weights import load_encoder

    torch.set_num_threads(1)
    vae = load_components(options.prior).vae
    encoders = {"trained": load_encoder(options.encoder, vae), "original": vae.encoder}
    found: dict[str, list[list[float]]] = {}
    for crop_HWC in held_out(options):
        rows = [compared(vae, encoders, crop_HWC, options.degradation, SEED + draw) for draw in range(options.draws)]
        for name in rows[0]:
            found.setdefault(name, []).append([row[name] for row in rows])
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    gains = {}
    for target in ("ground truth", "D(E(gt))"):
        gain_N = (np.array(found[f"trained to {target}"]) - np.array(found[f"original to {target}"])).mean(axis=1)
        gains[f"gain to {target}, dB"] = round(float(gain_N.mean()), 3)
        gains[f"its standard error to {target}"] = round(float(gain_N.std(ddof=1) / len(gain_N) ** 0.5), 3)
        gains[f"photographs that gain to {target}"] = int((gain_N > 0).sum())
    photographs = len(found["degraded to ground truth"])
    return {"photographs": photographs, "draws": options.draws, **{name: round(value, 3) for name, value in mean.items()}, **gains}


def held_out(options: argparse.Namespace) -> Any:
    """The centre of each held-out photograph of the corpus, uint8 HWC."""
    from infra.dataset import Dataset
    from infra.holdout import is_held_out
    from supir_model import images

    dataset = Dataset(options.corpus)
    for ref in dataset.snapshot("images").shards.values():
        for row in dataset.read(ref, ["image_id", "bytes"]).to_pylist():
            if is_held_out(row["image_id"]):
                yield images.crop(images.resize_short_side(images.decode(row["bytes"]).rgb_HWC, options.short_side), options.crop)


def compared(vae: Any, encoders: dict[str, Any], gt_HWC: np.ndarray, degradation: str, position: int) -> dict[str, float]:
    """PSNR of one pair, by what is compared."""
    import torch

    from supir_model import images
    from supir_model.degradation import apply_rgb, draw
    from supir_model.encoder import decode, encode_mode

    lq_HWC = apply_rgb(gt_HWC, draw(degradation, SEED, position, len(gt_HWC)))
    x_gt_BCHW, x_lq_BCHW = images.rgb_to_model([gt_HWC]), images.rgb_to_model([lq_HWC])
    with torch.no_grad():
        aim_HWC = images.model_to_rgb(decode(vae, encode_mode(vae, vae.encoder, x_gt_BCHW)))[0]
        seen = {name: images.model_to_rgb(decode(vae, encode_mode(vae, one, x_lq_BCHW)))[0] for name, one in encoders.items()}
    seen["degraded"] = lq_HWC
    targets = {"ground truth": gt_HWC, "D(E(gt))": aim_HWC}
    return {f"{name} to {target}": psnr_dB(a_HWC, b_HWC) for name, a_HWC in seen.items() for target, b_HWC in targets.items()}


def psnr_dB(a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    return float(10 * np.log10(255.0**2 / np.square(a_HWC.astype(np.float64) - b_HWC).mean()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
