#!/usr/bin/env python3
"""A guided step of restoration, ours beside diffusers' SDXL + ControlNet pipeline of equal size. Prints one JSON line.

    python benchmarks/sampler.py [--size 512] [--steps 6] [--rounds 5] [--threads 1]

Both sides run the same prior with random weights on the CPU in fp32, positive and negative halves in one batch, and are interleaved
run by run, because rates drift. A step is what lies between two callbacks; the first of a run is left out. FLOPs are counted by torch
in one step of each (convolutions, matrix products, attention; twice the multiply-adds), so `time_ratio` beside `flop_ratio` says
whether ours pays for more than the work that SUPIR adds: connectors of 3 x 3 convolutions and two cross attentions instead of
1 x 1 convolutions; ControlNet has its pixel hint at full size instead.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VAE_FACTOR, TOKENS = 8, 77
GUIDANCE = 7.5

Run = Callable[[int], list[float]]
"""Samples with this many steps; seconds of every step but the first."""


def network() -> Any:
    """SDXL's layout at a fifth of its widths."""
    from dataclasses import replace

    from supir_model.presets import get_network

    return replace(
        get_network("sdxl_release"),
        name="bench",
        block_out_channels=(64, 128, 256),
        transformer_depth=(0, 1, 2),
        trunk_depth=(0, 1, 2),
        context_dim=256,
        pooled_dim=128,
        addition_time_embed_dim=32,
    )


def ours(preset: Any, unet: Any, size_px: int) -> Run:
    """`sample_edm` with adaptor, guidance and the pull to the input, as recipe `paper` runs it."""
    import torch

    from supir_model.conditioning import Conditions, size_time_ids
    from supir_model.denoiser import Denoiser
    from supir_model.guidance import guided
    from supir_model.network import SupirAdaptor, SupirUNet
    from supir_model.sampler import sample_edm
    from supir_model.schedule import Ramp, sdxl_schedule

    supir = SupirUNet(unet, SupirAdaptor.from_unet(unet, preset).requires_grad_(False)).eval()
    side = size_px // VAE_FACTOR
    z_BCHW = torch.randn(1, 4, side, side)

    def conditions() -> Conditions:
        context_BND, pooled_BD = torch.randn(1, TOKENS, preset.context_dim), torch.randn(1, preset.pooled_dim)
        return Conditions(context_BND=context_BND, pooled_BD=pooled_BD, time_ids_B6=size_time_ids(1, size_px), z_lq_BCHW=z_BCHW)

    def eps(x_BCHW: Any, timestep_B: Any, c: Conditions, control_scale: float) -> Any:
        return supir(x_BCHW, timestep_B, c.context_BND, c.added, c.z_lq_BCHW, control_scale)

    denoiser = Denoiser(eps=eps, schedule=sdxl_schedule())
    denoise = guided(denoiser, positive=conditions(), negative=conditions(), weight=Ramp(start=GUIDANCE, end=GUIDANCE))

    def run(steps: int) -> list[float]:
        clock: list[float] = []

        def tick(step: int, sigma: float, x_BCHW: Any) -> Any:
            clock.append(time.perf_counter())
            return x_BCHW

        sigmas = sdxl_schedule().sigmas(steps)
        noise = torch.randn_like(z_BCHW)
        sample_edm(denoise, noise, sigmas, draw=lambda: noise, z_center_BCHW=z_BCHW, restore_cfg=4.0, on_step=tick)
        return between(clock)

    return run


def peer(preset: Any, unet: Any, size_px: int) -> Run:
    """diffusers' StableDiffusionXLControlNetPipeline with the same prior; the ControlNet is a copy of its encoder half."""
    import torch
    from diffusers import ControlNetModel, EulerDiscreteScheduler, StableDiffusionXLControlNetPipeline

    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipeline = StableDiffusionXLControlNetPipeline(
        vae=preset.build_vae(), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=unet,
        controlnet=ControlNetModel.from_unet(unet).eval(), scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    texts = {
        f"{half}{name}": torch.randn(shape)
        for half in ("", "negative_")
        for name, shape in (("prompt_embeds", (1, TOKENS, preset.context_dim)), ("pooled_prompt_embeds", (1, preset.pooled_dim)))
    }
    image = torch.rand(1, 3, size_px, size_px)

    def run(steps: int) -> list[float]:
        clock: list[float] = []

        def tick(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            clock.append(time.perf_counter())
            return tensors

        pipeline(
            **texts, image=image, height=size_px, width=size_px, num_inference_steps=steps, guidance_scale=GUIDANCE, output_type="latent",
            callback_on_step_end=tick,
        )  # fmt: skip
        return between(clock)

    return run


def between(clock: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(clock)]


def gflops(run: Run) -> float:
    """Of one step."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not know a CPU's fused attention
        run(1)
    return counter.get_total_flops() / 1e9


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the picture, in pixels; the latent's is an eighth")
    parser.add_argument("--steps", type=int, default=6, help="steps of one run; the first is not counted")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side, taken in turn")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if args.steps < 2:
        parser.error(f"--steps is {args.steps}, expected 2 or more: the first is not counted")
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    preset = network()
    unet = preset.build_unet().eval().requires_grad_(False)
    sides = {"ours": ours(preset, unet, args.size), "peer": peer(preset, unet, args.size)}
    work = {name: gflops(run) for name, run in sides.items()}
    steps: dict[str, list[float]] = {name: [] for name in sides}
    for done in range(args.rounds):
        for name, run in sides.items():
            steps[name] += run(args.steps)
        so_far = ", ".join(f"{name} {median(seconds):.3f} s" for name, seconds in steps.items())
        print(f"round {done + 1} of {args.rounds}: {so_far}", file=sys.stderr, flush=True)
    times = {name: median(seconds) for name, seconds in steps.items()}
    result = {
        "benchmark": "sampler", "size_px": args.size, "threads": args.threads, "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__, "steps_measured": len(steps["ours"]),
        "ours_s": round(times["ours"], 4), "peer_s": round(times["peer"], 4), "time_ratio": round(times["ours"] / times["peer"], 3),
        "ours_gflop": round(work["ours"], 2), "peer_gflop": round(work["peer"], 2), "flop_ratio": round(work["ours"] / work["peer"], 3),
        "ours_gflop_s": round(work["ours"] / times["ours"], 1), "peer_gflop_s": round(work["peer"] / times["peer"], 1),
    }  # fmt: skip
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
