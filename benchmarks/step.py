#!/usr/bin/env python3
"""One update of stage 2: the share of its parts, and ZeRO-2 beside plain DDP at equal work. Prints one JSON line.

    python benchmarks/step.py [--crop 256] [--micro 2] [--workers 2] [--rounds 5]

SDXL's layout at a fifth of its widths with random weights, on the CPU in fp32, one thread a worker; workers talk through gloo. The two
engines train equal networks in the same processes, in turn, because rates drift. Shares are of one worker alone: `data` decodes a
photograph of 1024 px, cuts the crop and degrades it; `encode` runs the autoencoder on both pictures; `exchange` is what an update takes
longer with several workers than alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "examples" / "photos" / "forest_stream.jpg"
PHOTO_PX, QUALITY = 1024, 95
ENGINES = ("plain", "zero")


def network() -> Any:
    from dataclasses import replace

    from supir_model.presets import get_network

    return replace(
        get_network("sdxl_release"), name="bench", block_out_channels=(64, 128, 256), transformer_depth=(0, 1, 2), trunk_depth=(0, 1, 2),
        context_dim=256, pooled_dim=128, addition_time_embed_dim=32, vae_block_out_channels=(32, 64, 64, 64),
    )  # fmt: skip


def make_step(preset: Any, micro: int) -> Any:
    import torch

    from supir_model.network import SupirAdaptor
    from training.step import AdaptorStep

    torch.manual_seed(0)
    unet, text = preset.build_unet(), (torch.randn(micro, 77, preset.context_dim), torch.randn(micro, preset.pooled_dim))
    return AdaptorStep(
        unet=unet, adaptor=SupirAdaptor.from_unet(unet, preset), vae=preset.build_vae(), encoder=preset.build_vae().encoder,
        encode_text=lambda prompts: text, conditioning_size_px=1024, bf16=False,
    )  # fmt: skip


def make_batch(preset: Any, micro: int, crop: int) -> dict[str, Any]:
    import torch

    side = crop // preset.vae_factor
    pictures = {name: torch.rand(micro, 3, crop, crop) * 2 - 1 for name in ("x_gt_BCHW", "x_lq_BCHW")}
    noise_BCHW = torch.randn(micro, preset.latent_channels, side, side)
    return {**pictures, "prompts": [""] * micro, "timestep_B": torch.randint(0, 1000, (micro,)), "noise_BCHW": noise_BCHW}


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    value = work()
    return time.perf_counter() - begun, value


def make_engine(kind: str, step: Any, micro: int, world: int) -> Any:
    import torch

    from training.engines import build_engine
    from training.recipes import EngineOptions, OptimizerOptions

    options = EngineOptions(kind=kind)  # type: ignore[arg-type]
    return build_engine(
        step, options=options, optimizer=OptimizerOptions(lr=1e-5), global_batch=micro * world, micro_batch=micro, accumulation=1,
        device=torch.device("cpu"),
    )  # fmt: skip


def worker(rank: int, args: argparse.Namespace, port: int, result: str) -> None:
    """Both engines in turn; rank 0 writes the seconds of every update."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(args.workers), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    dist.init_process_group("gloo", rank=rank, world_size=args.workers)
    preset = network()
    first = make_step(preset, args.micro)
    engines = {kind: make_engine(kind, copy.deepcopy(first), args.micro, args.workers) for kind in ENGINES}
    batch = make_batch(preset, args.micro, args.crop)
    seconds: dict[str, list[float]] = {kind: [] for kind in ENGINES}
    for done in range(args.rounds + 1):
        for kind, engine in engines.items():
            dist.barrier()
            took, _ = clocked(lambda engine=engine: (engine.accumulate([batch]), engine.update(1e-5)))
            seconds[kind] += [took] if done else []  # the first is a warm-up
        if rank == 0:
            print(f"round {done} of {args.rounds}", file=sys.stderr, flush=True)
    if rank == 0:
        Path(result).write_text(json.dumps(seconds))
    dist.barrier()
    dist.destroy_process_group()


def shares(args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each part, one worker."""
    import torch

    from supir_model.encoder import encode_mode

    preset = network()
    step = make_step(preset, args.micro)
    engine = make_engine("plain", step, args.micro, 1)
    batch = make_batch(preset, args.micro, args.crop)
    vae = preset.build_vae().eval()
    data = photograph()
    found: dict[str, list[float]] = {}
    for done in range(args.rounds + 1):
        with torch.no_grad():
            encode_s, _ = clocked(lambda: [encode_mode(vae, vae.encoder, batch[name]) for name in ("x_gt_BCHW", "x_lq_BCHW")])
        data_s, _ = clocked(lambda done=done: [sample(data, args.crop, done * args.micro + i) for i in range(args.micro)])
        forward_s, (loss, _) = clocked(lambda: step(batch))
        backward_s, _ = clocked(loss.backward)
        update_s, _ = clocked(lambda: engine.update(1e-5))
        parts = {"data": data_s, "encode": encode_s, "forward": forward_s - encode_s, "backward": backward_s, "optimizer": update_s}
        for name, seconds in parts.items() if done else ():
            found.setdefault(name, []).append(seconds)
    return {name: median(seconds) for name, seconds in found.items()}


def photograph() -> bytes:
    from supir_model import images

    rgb_HWC = images.decode(PHOTO.read_bytes()).rgb_HWC
    return images.encode_jpeg(images.resize(rgb_HWC, PHOTO_PX, PHOTO_PX), quality=QUALITY, subsampling=2)


def sample(data: bytes, crop_px: int, position: int) -> Any:
    from supir_model import degradation, images

    rgb_HWC = images.crop(images.decode(data).rgb_HWC, crop_px)
    return degradation.apply_rgb(rgb_HWC, degradation.draw("real_esrgan", 0, position, crop_px))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=256, help="side of the crops, in pixels")
    parser.add_argument("--micro", type=int, default=2, help="samples of a worker's pass")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="updates of each engine that are counted")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    import torch

    torch.set_num_threads(1)
    parts = shares(args)
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        result = Path(folder, "seconds.json")
        torch.multiprocessing.spawn(worker, (args, port, str(result)), nprocs=args.workers)
        engines = {kind: median(seconds) for kind, seconds in json.loads(result.read_text()).items()}
    computed = sum(parts.values()) - parts["data"]
    print(
        json.dumps(
            {
                "benchmark": "step", "crop_px": args.crop, "micro_batch": args.micro, "workers": args.workers, "rounds": args.rounds,
                "cpu": platform.machine(), "torch": torch.__version__,
                "seconds": {name: round(value, 4) for name, value in parts.items()},
                "shares_of_compute": {name: round(value / computed, 3) for name, value in parts.items() if name != "data"},
                "plain_s": round(engines["plain"], 4), "zero_s": round(engines["zero"], 4),
                "zero_to_plain": round(engines["zero"] / engines["plain"], 3), "exchange_s": round(engines["plain"] - computed, 4),
            }
        )
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
