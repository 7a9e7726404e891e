#!/usr/bin/env python3
"""One update of stage 2: the share of its parts, and ZeRO-2 beside plain DDP at equal work. Prints one JSON line.

    python benchmarks/step.py [--crop 256] [--micro 2] [--workers 2] [--rounds 5] [--peer]
    python benchmarks/step.py --network sdxl_release --device cuda --bf16 --crop 512 --micro 1 2 4 8 16 --workers 0 --peer --tflops 989

Random weights. Shares are of one worker alone, for each micro batch: `data` decodes a photograph of 1024 px, cuts the crop and degrades it
(made ahead in training); `encode` runs the autoencoder on both pictures; texts are given, their encoders do not run. `--peer` adds the
training step of a plain diffusers ControlNet on the same prior, in turn with ours. `mfu` is the counted work over `--tflops`. `--workers 2`
and more trains equal networks with both engines in the same processes, in turn, because rates drift; workers talk through gloo, one thread
each, and `exchange` is what an update takes longer with them than alone. `bench` is SDXL's layout at a fifth of its widths.
The second line has not been run on a GPU.
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
TOKENS = 77


def network(name: str) -> Any:
    from dataclasses import replace

    from supir_model.presets import get_network

    if name != "bench":
        return get_network(name)
    return replace(
        get_network("sdxl_release"), name="bench", block_out_channels=(64, 128, 256), transformer_depth=(0, 1, 2), trunk_depth=(0, 1, 2),
        context_dim=256, pooled_dim=128, addition_time_embed_dim=32, vae_block_out_channels=(32, 64, 64, 64),
    )  # fmt: skip


class Prior:
    """The frozen networks of a preset with random weights, in the type that they compute in."""

    def __init__(self, preset: Any, device: str, bf16: bool) -> None:
        import torch

        torch.manual_seed(0)
        self.preset, self.device, self.bf16 = preset, device, bf16
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        with torch.device(device):
            self.unet, self.vae, lq = preset.build_unet(), preset.build_vae(), preset.build_vae()
        for module in (self.unet, self.vae, lq):
            module.requires_grad_(False).eval().to(self.dtype)
        self.encoder = lq.encoder

    def text(self, micro: int) -> Any:
        import torch

        widths = {"device": self.device, "dtype": self.dtype}
        return torch.randn(micro, TOKENS, self.preset.context_dim, **widths), torch.randn(micro, self.preset.pooled_dim, **widths)

    def ours(self, micro: int) -> Any:
        from supir_model.network import SupirAdaptor
        from training.step import AdaptorStep

        text = self.text(micro)
        step = AdaptorStep(
            unet=self.unet, adaptor=SupirAdaptor.from_unet(self.unet, self.preset).float(), vae=self.vae, encoder=self.encoder,
            encode_text=lambda prompts: text, conditioning_size_px=1024, bf16=self.bf16,
        )  # fmt: skip
        return step.to(self.device)

    def controlnet(self, micro: int) -> Any:
        from benchmarks.peers.controlnet import ControlNetStep

        step = ControlNetStep(self.unet, self.vae, self.text(micro), self.bf16)
        step.controlnet.float().requires_grad_(True)
        return step.to(self.device)

    def encode(self, batch: dict[str, Any]) -> None:
        """Both pictures, as the step does it."""
        import torch

        from supir_model.encoder import encode_mode
        from training.step import compute

        with torch.no_grad(), compute(batch["noise_BCHW"], self.bf16):
            encode_mode(self.vae, self.vae.encoder, batch["x_gt_BCHW"])
            encode_mode(self.vae, self.encoder, batch["x_lq_BCHW"])


def make_batch(preset: Any, micro: int, crop: int, device: str) -> dict[str, Any]:
    import torch

    side = crop // preset.vae_factor
    pictures = {name: torch.rand(micro, 3, crop, crop, device=device) * 2 - 1 for name in ("x_gt_BCHW", "x_lq_BCHW")}
    noise_BCHW = torch.randn(micro, preset.latent_channels, side, side, device=device)
    timestep_B = torch.randint(0, 1000, (micro,), device=device)
    return {**pictures, "prompts": [""] * micro, "timestep_B": timestep_B, "noise_BCHW": noise_BCHW}


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    begun = time.perf_counter()
    value = work()
    wait()
    return time.perf_counter() - begun, value


def make_engine(kind: str, step: Any, micro: int, world: int, device: str) -> Any:
    import torch

    from training.engines import build_engine
    from training.recipes import EngineOptions, OptimizerOptions

    options = EngineOptions(kind=kind)  # type: ignore[arg-type]
    return build_engine(
        step, options=options, optimizer=OptimizerOptions(lr=1e-5), global_batch=micro * world, micro_batch=micro, accumulation=1,
        device=torch.device(device),
    )  # fmt: skip


def worker(rank: int, args: argparse.Namespace, port: int, result: str) -> None:
    """Both engines in turn; rank 0 writes the seconds of every update."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(args.workers), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    dist.init_process_group("gloo", rank=rank, world_size=args.workers)
    micro, preset = args.micro[0], network(args.network)
    first = Prior(preset, "cpu", args.bf16).ours(micro)
    engines = {kind: make_engine(kind, copy.deepcopy(first), micro, args.workers, "cpu") for kind in ENGINES}
    batch = make_batch(preset, micro, args.crop, "cpu")
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


def engines_s(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every update, by engine."""
    import torch

    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        result = Path(folder, "seconds.json")
        torch.multiprocessing.spawn(worker, (args, port, str(result)), nprocs=args.workers)
        found: dict[str, list[float]] = json.loads(result.read_text())
    return found


def parts(step: Any, engine: Any, batch: dict[str, Any], encode: Callable[[], None] | None) -> dict[str, float]:
    """Seconds of one update by part; what is encoded is taken off the forward pass where it is known."""
    encode_s = clocked(encode)[0] if encode else 0.0
    forward_s, (loss, _) = clocked(lambda: step(batch))
    backward_s, _ = clocked(loss.backward)
    update_s, _ = clocked(lambda: engine.update(1e-5))
    return {"encode": encode_s, "forward": forward_s - encode_s, "backward": backward_s, "optimizer": update_s}


def one_micro(prior: Prior, micro: int, args: argparse.Namespace) -> dict[str, Any]:
    """Ours, and the plain loop where it is asked for, in turn; medians of the rounds."""
    import torch

    from training.loop import memory_mb

    batch, data = make_batch(prior.preset, micro, args.crop, args.device), photograph()
    steps = {"ours": prior.ours(micro)} | ({"controlnet": prior.controlnet(micro)} if args.peer else {})
    engines = {name: make_engine("plain", step, micro, 1, args.device) for name, step in steps.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    memory: dict[str, float] = {}
    for done in range(args.rounds + 1):
        for name, step in steps.items():
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            found = parts(step, engines[name], batch, (lambda: prior.encode(batch)) if name == "ours" else None)
            memory[name] = memory_mb()
            if name == "ours":
                found["data"] = clocked(lambda done=done: [sample(data, args.crop, done * micro + i) for i in range(micro)])[0]
            rounds[name] += [found] if done else []  # the first is a warm-up
        print(f"micro batch {micro}: round {done} of {args.rounds}", file=sys.stderr, flush=True)
    return {name: summary(rounds[name], steps[name], batch, memory[name], args) for name in steps}


def summary(rounds: list[dict[str, float]], step: Any, batch: dict[str, Any], memory: float, args: argparse.Namespace) -> dict[str, Any]:
    micro = len(batch["timestep_B"])
    seconds = {name: median(one[name] for one in rounds) for name in rounds[0]}
    update_s = median(sum(value for name, value in one.items() if name != "data") for one in rounds)
    work = flops(step, batch) / micro
    found = {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "shares": {name: round(value / update_s, 3) for name, value in seconds.items() if name != "data"},
        "images_per_s": round(micro / update_s, 3), "gflops_an_image": round(work / 1e9, 2), "memory_mb": round(memory),
    }  # fmt: skip
    return found | ({"mfu": round(work * micro / update_s / args.tflops / 1e12, 4)} if args.tflops else {})


def flops(step: Any, batch: dict[str, Any]) -> float:
    """Counted work of a forward and a backward pass, 2 a multiply-add."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the counter does not know a CPU's fused attention
        step(batch)[0].backward()
    step.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def photograph() -> bytes:
    from supir_model import images

    rgb_HWC = images.decode(PHOTO.read_bytes()).rgb_HWC
    return images.encode_jpeg(images.resize(rgb_HWC, PHOTO_PX, PHOTO_PX), quality=QUALITY, subsampling=2)


def sample(data: bytes, crop_px: int, position: int) -> Any:
    from supir_model import degradation, images

    rgb_HWC = images.crop(images.decode(data).rgb_HWC, crop_px)
    return degradation.apply_rgb(rgb_HWC, degradation.draw("real_esrgan", 0, position, crop_px))


def sweep(args: argparse.Namespace) -> dict[str, Any]:
    """Every micro batch; one that does not fit is told and ends the sweep."""
    import torch

    prior, found = Prior(network(args.network), args.device, args.bf16), {}
    for micro in args.micro:
        try:
            found[str(micro)] = one_micro(prior, micro, args)
        except torch.OutOfMemoryError:
            return found | {str(micro): "does not fit into memory"}
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="bench", choices=["bench", "tiny", "sdxl_paper", "sdxl_release"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bf16", action="store_true", help="frozen networks and compute in bf16; what is trained stays fp32")
    parser.add_argument("--crop", type=int, default=256, help="side of the crops, in pixels")
    parser.add_argument("--micro", type=int, nargs="+", default=[2], help="samples of a worker's pass; the engines take the first")
    parser.add_argument("--workers", type=int, default=2, help="of the comparison of engines, on the CPU; below 2 it is left out")
    parser.add_argument("--rounds", type=int, default=5, help="updates that are counted")
    parser.add_argument("--peer", action="store_true", help="a plain diffusers ControlNet training step beside ours")
    parser.add_argument("--tflops", type=float, default=0.0, help="nominal TFLOP/s of the device, for the utilisation (H200 in bf16: 989)")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    import torch

    if args.device == "cpu":
        torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "step", "network": args.network, "crop_px": args.crop, "rounds": args.rounds, "bf16": args.bf16}
    result |= {"device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(), "torch": torch.__version__}
    result["micro_batches"] = found = sweep(args)
    if args.workers > 1:
        engines = engines_s(args)
        plain_s, zero_s = (median(engines[kind]) for kind in ENGINES)
        alone_s = args.micro[0] / found[str(args.micro[0])]["ours"]["images_per_s"]
        ratio = median(zero / plain for zero, plain in zip(engines["zero"], engines["plain"], strict=True))
        result |= {"workers": args.workers, "plain_s": round(plain_s, 4), "zero_s": round(zero_s, 4), "zero_to_plain": round(ratio, 3)}
        result["exchange_s"] = round(plain_s - alone_s, 4)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
