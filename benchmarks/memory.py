#!/usr/bin/env python3
"""Peak memory of one restoration against the size of the picture and of the tiles. Prints one JSON line.

    python benchmarks/memory.py [--size 512 1024 2048] [--tile 256 512] [--vae-tiling exact_norms]

Every size runs in a process of its own, one sampling step on the tiny network with a fresh adaptor, on the CPU. `peak_mib` is the most
that the process held above what it held with its networks loaded; `estimate_mib` is what restore expects (`supir_model/memory.py`) before
it starts, and `estimated_tile_mib` the part of it that depends on the tile. A tile of 0 is none.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATUS = Path("/proc/self/status")
MIB = 2**20


def status_bytes(name: str) -> int:
    """A line of /proc/self/status: VmRSS (now) or VmHWM (the most so far)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measure(size_px: int, tile_px: int, tiling: str) -> dict[str, float]:
    """One picture of `size_px` squared in this process."""
    import torch

    from supir_model.memory import image_bytes, network_bytes
    from supir_model.network import SupirAdaptor
    from supir_model.presets import get_network, get_sampling
    from supir_model.restore import restore
    from supir_model.weights import load_restorer

    torch.set_num_threads(1)
    network = get_network("tiny")
    settings = dataclasses.replace(
        get_sampling("tiny"), steps=1, tile_px=tile_px, tile_stride_px=tile_px, vae_tile_px=tile_px, vae_tiling=tiling
    )
    restorer = dataclasses.replace(load_restorer(ROOT / "priors" / "tiny"), adaptor=SupirAdaptor(network).requires_grad_(False))
    restore(restorer, torch.zeros(1, 3, 64, 64), ["a"], ["b"], settings, [0])  # libraries load the rest of themselves
    x_BCHW = torch.rand(1, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)) * 2 - 1
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before, start = status_bytes("VmRSS"), time.monotonic()
    restore(restorer, x_BCHW, ["a"], ["b"], settings, [0])
    images, tile = (part(network, size_px, size_px, settings, 4) for part in (image_bytes, network_bytes))
    return {
        "size_px": size_px,
        "tile_px": tile_px,
        "peak_mib": round((status_bytes("VmHWM") - before) / MIB),
        "estimate_mib": round((images + tile) / MIB),
        "estimated_tile_mib": round(tile / MIB),
        "seconds": round(time.monotonic() - start, 1),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024, 2048], help="sides of the pictures, in pixels")
    parser.add_argument("--tile", type=int, nargs="+", default=[256, 512], help="sides of the tiles, in pixels; 0: none")
    parser.add_argument("--vae-tiling", default="exact_norms", choices=("exact", "exact_norms", "released"))
    parser.add_argument("--one", action="store_true", help="measure the one size and tile given in this very process")
    args = parser.parse_args(argv)
    if not STATUS.exists():
        print("this benchmark reads /proc/self/status, which Linux alone has", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    if args.one:
        print(json.dumps(measure(args.size[0], args.tile[0], args.vae_tiling)))
        return 0
    rows = []
    for tile in args.tile:
        for size in args.size:
            command = [sys.executable, __file__, "--one", f"--size={size}", f"--tile={tile}", f"--vae-tiling={args.vae_tiling}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            rows.append(json.loads(done.stdout))
            print(f"{size} px, tiles of {tile} px: {rows[-1]['peak_mib']} MiB", file=sys.stderr, flush=True)
    print(json.dumps({"benchmark": "memory", "network": "tiny", "vae_tiling": args.vae_tiling, "threads": 1, "runs": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
