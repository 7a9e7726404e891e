#!/usr/bin/env python3
"""From shards to 512 px crops: ours beside pure decoding and beside a torch DataLoader over the same shards. Prints one JSON line.

    python benchmarks/read.py [--images 192] [--rounds 5] [--photos FOLDER]

One process, one thread. Ours is `training.batches.Batches`: the exact, resumable global sequence over committed shards, with their hashes
verified; its degradation is left out. The loader reads the same Parquet files row group by row group, shuffles in a buffer and calls the
same decoder. `decode` has all bytes in memory and does nothing but decode and crop. Each round goes once through all images, with
nothing kept from the round before; sides are taken in turn, because rates drift. `first_s` is the time to the first sample.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIDE_PX, CROP_PX, QUALITY, PER_SHARD = 1024, 512, 95, 32
SHUFFLE = 64  # choice: samples of the loader's shuffle buffer


def photographs(folder: Path) -> list[bytes]:
    """The photographs of a folder as JPEG of 1024 x 1024, quality 95."""
    from supir_model import images

    made = []
    for path in sorted(folder.iterdir()):
        try:
            rgb_HWC = images.decode(path.read_bytes()).rgb_HWC
        except images.ImageError:
            continue
        made.append(images.encode_jpeg(images.resize(rgb_HWC, SIDE_PX, SIDE_PX), quality=QUALITY, subsampling=2))
    return made


def build(url: str, pictures: list[bytes], count: int) -> None:
    """A dataset of images, all selected; every row is another file, by a comment of its own."""
    import hashlib

    import pyarrow as pa

    from infra.dataset import Dataset
    from infra.ledger import Ledger

    dataset = Dataset(url)
    made: dict[str, list[Any]] = {"images": [], "selections": []}
    for n, low in enumerate(range(0, count, PER_SHARD)):
        images, selections = [], []
        for i in range(low, min(low + PER_SHARD, count)):
            data = commented(pictures[i % len(pictures)], i)
            ids = {"image_id": hashlib.sha256(data).hexdigest(), "source_id": f"{i:032x}"}
            images.append({**ids, "bytes": data})
            selections.append({**ids, "accepted": True, "reason": ""})
        for table, rows in (("images", images), ("selections", selections)):
            made[table].append(
                dataset.commit(
                    table=table, version="1", shard=f"{n:05d}", key="1", data=pa.Table.from_pylist(rows), outcomes=[],
                    ledger=Ledger(len(rows), len(rows)), inputs={}, stage_version=1,
                )
            )
    for table, refs in made.items():
        dataset.publish(table, "1", refs, {})


def commented(jpeg: bytes, number: int) -> bytes:
    """The same picture with a comment segment behind its first marker."""
    return jpeg[:2] + b"\xff\xfe\x00\x06" + number.to_bytes(4, "big") + jpeg[2:]


def ours(url: str, count: int, seed: int) -> Iterator[Any]:
    from dataclasses import replace

    from training import record
    from training.batches import Batches
    from training.recipes import encoder_tiny

    config = encoder_tiny()
    options = replace(config.batch, crop_px=CROP_PX, short_side_px=SIDE_PX, lanes=4, cache_mb=0, exclude_heldout=False)
    config = replace(config, input=url, batch=options, seed=seed)
    batches = Batches(record.survey(config, captions=False).sources, seed=seed, options=options, world=1)
    for position in range(count):
        yield batches.ground_truth(position)[2]


def loader(url: str, count: int, seed: int) -> Iterator[Any]:
    import pyarrow.parquet as pq
    import torch

    from supir_model import images

    class Shards(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            chance, buffer = random.Random(seed), []
            files = sorted(Path(url, "images").glob("*.parquet"))
            chance.shuffle(files)
            for path in files:
                for batch in pq.ParquetFile(path).iter_batches(columns=["bytes"]):
                    for data in batch.column("bytes"):
                        buffer.append(data.as_py())
                        if len(buffer) > SHUFFLE:
                            yield self.crop(buffer.pop(chance.randrange(len(buffer))), chance)
            chance.shuffle(buffer)
            yield from (self.crop(data, chance) for data in buffer)

        def crop(self, data: bytes, chance: random.Random) -> Any:
            return images.crop(images.decode(data).rgb_HWC, CROP_PX, u_y=chance.random(), u_x=chance.random())

    yield from torch.utils.data.DataLoader(Shards(), batch_size=None, num_workers=0)


def decode(pictures: list[bytes], count: int) -> Iterator[Any]:
    from supir_model import images

    for i in range(count):
        yield images.crop(images.decode(pictures[i % len(pictures)]).rgb_HWC, CROP_PX)


def timed(samples: Iterator[Any]) -> tuple[float, float, int]:
    """(seconds, seconds to the first, how many)."""
    begun, first, found = time.perf_counter(), 0.0, 0
    for _ in samples:
        found += 1
        first = first or time.perf_counter() - begun
    return time.perf_counter() - begun, first, found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=Path, default=ROOT / "examples" / "photos")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    pictures = photographs(args.photos)
    seconds: dict[str, list[float]] = {}
    first: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as url:
        build(url, pictures, args.images)
        for seed in range(args.rounds):
            sides: dict[str, Callable[[int], Iterator[Any]]] = {
                "decode": lambda _: decode(pictures, args.images),
                "ours": lambda seed: ours(url, args.images, seed),
                "loader": lambda seed: loader(url, args.images, seed),
            }
            for name, side in sides.items():
                took, first_s, found = timed(side(seed))
                assert found == args.images, f"{name} gave {found} samples, {args.images} were expected"
                seconds.setdefault(name, []).append(took)
                first.setdefault(name, []).append(first_s)
            print(f"round {seed + 1} of {args.rounds}", file=sys.stderr, flush=True)
    rates = {name: args.images / median(values) for name, values in seconds.items()}
    ratios = {name: median(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True)) for name in ("decode", "loader")}
    result = {
        "benchmark": "read", "images": args.images, "rounds": args.rounds, "cpu": platform.machine(), "torch": torch.__version__,
        "images_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "ours_to_decode": round(ratios["decode"], 3), "ours_to_loader": round(ratios["loader"], 3),
        "first_s": {name: round(median(values), 3) for name, values in first.items()},
    }  # fmt: skip
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
