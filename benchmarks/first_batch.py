#!/usr/bin/env python3
"""How long a worker of a training waits for its first sample and its first batch where shards are large. Prints one JSON line.

    python benchmarks/first_batch.py [--shards 8] [--rounds 5] [--photos FOLDER]

Shards of 776 JPEG of 1024 x 1024 (233 MB), one worker with one lane and with four, decode threads as in the full-size recipes. Every
measure is a fresh process and another seed; what it imports, and the survey of the commits, are not counted. `whole` waits for whole
shards, as it was before rows were verified by themselves (infra/apart.py). Sides in turn; the files are in the system's page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PER_SHARD, BATCH, THREADS = 776, 4, 4
SIDES = ("ours", "whole")


def measure(url: str, lanes: int, side: str) -> None:
    """In this process, which has read nothing yet; it ends here."""
    import cv2
    import pyarrow as pa

    from training import batches, record
    from training.recipes import encoder_paper

    cv2.setNumThreads(1)
    pa.set_memory_pool(pa.system_memory_pool())  # as training/worker.py
    if side == "whole":
        batches.LARGE_BYTES = 2**62
    config = encoder_paper()
    options = replace(config.batch, lanes=lanes, exclude_heldout=False, decode_threads=THREADS)
    sources = record.survey(replace(config, input=url, batch=options), captions=False).sources
    begun = time.perf_counter()
    worker = batches.Batches(sources, seed=time.time_ns(), options=options, world=1)
    arrived_s = [time.perf_counter() - begun for _ in batches.prefetch(worker.ground_truth, 0, BATCH, BATCH, THREADS)]
    print(json.dumps({"first_sample_s": arrived_s[0], "first_batch_s": arrived_s[-1]}), flush=True)
    os._exit(0)  # without waiting for the shards that are being opened


def in_new_process(url: str, lanes: int, side: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", url, str(lanes), side]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=Path, default=ROOT / "examples" / "photos")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    if args.measure:
        url, lanes, side = args.measure
        measure(url, int(lanes), side)
    from benchmarks.read import build, photographs

    taken: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as url:
        build(url, photographs(args.photos), args.shards * PER_SHARD, PER_SHARD)
        shard_mb = sum(path.stat().st_size for path in Path(url, "images").iterdir()) / args.shards / 1e6
        for _ in range(args.rounds):
            for lanes in (1, 4):
                for side in SIDES:
                    taken.setdefault(f"{side}, {lanes} lanes", []).append(in_new_process(url, lanes, side))
    result: dict[str, Any] = {"benchmark": "first_batch", "shards": args.shards, "shard_mb": round(shard_mb), "rounds": args.rounds}
    for name, rounds in taken.items():
        result[name] = {key: [round(pick(one[key] for one in rounds), 3) for pick in (median, max)] for key in rounds[0]}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
