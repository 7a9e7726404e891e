#!/usr/bin/env python3
"""From shards to 512 px crops: ours beside pure decoding and beside other readers of the same images. Prints one JSON line.

    python benchmarks/read.py [--images 768] [--rounds 5] [--photos FOLDER] [--cores 1]

One process on one core, so that no side has more of the machine than another (`--cores 2` lends each a second one, which only threads
of its own can use); OpenCV and torch with one thread.

- `ours` is `training.batches.Batches`: the exact, resumable global sequence over committed shards, with their hashes verified; its
  degradation and its mirroring are left out. It opens shards ahead in threads of its own, and decodes no row below its crop
  (supir_model/crops.py); `ours_whole` is the same with whole pictures decoded, as all others do it.
- `loader` is a torch DataLoader that reads the same Parquet files in batches of rows, `webdataset` (where it is installed) that library
  on the same images in tar shards. Both shuffle in a buffer of 64, call the same decoder and verify nothing.
- `decode` has the same files in memory and does nothing but decode and crop.

Each round goes once through all images, with nothing kept from the round before; sides are taken in turn, because rates drift.
`per_cpu_s` counts the processor's time of all threads, in which waiting and other processes do not show. `first_s` is the time to the
first sample.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
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
SETTLED_BYTES = 30 * 2**20  # freed once, glibc keeps memory of such sizes, as where networks were loaded: no picture costs 750 page faults
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


def build(url: str, pictures: list[bytes], count: int, per_shard: int = PER_SHARD) -> None:
    """A dataset of images, all selected; every row is another file, by a comment of its own."""
    import hashlib

    import pyarrow as pa

    from infra.dataset import Dataset
    from infra.ledger import Ledger

    dataset = Dataset(url)
    made: dict[str, list[Any]] = {"images": [], "selections": []}
    for n, low in enumerate(range(0, count, per_shard)):
        images, selections = [], []
        for i in range(low, min(low + per_shard, count)):
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


def ours(url: str, count: int, seed: int, *, whole: bool = False) -> Iterator[Any]:
    from dataclasses import replace

    from training import record
    from training.batches import Batches
    from training.recipes import encoder_tiny

    config = encoder_tiny()
    options = replace(config.batch, crop_px=CROP_PX, short_side_px=SIDE_PX, lanes=4, cache_mb=int(whole), exclude_heldout=False, flip=False)
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


def write_tars(folder: Path, pictures: list[bytes], count: int) -> None:
    """The images of `build`, as webdataset's shards of as many."""
    import io
    import tarfile

    for low in range(0, count, PER_SHARD):
        with tarfile.open(folder / f"{low // PER_SHARD:05d}.tar", "w") as tar:
            for i in range(low, min(low + PER_SHARD, count)):
                data = commented(pictures[i % len(pictures)], i)
                member = tarfile.TarInfo(f"{i:09d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def tars(folder: Path, seed: int) -> Iterator[Any]:
    import webdataset

    from supir_model import images

    chance = random.Random(seed)
    files = sorted(str(path) for path in folder.glob("*.tar"))
    chance.shuffle(files)
    for sample in webdataset.WebDataset(files, shardshuffle=False, empty_check=False).shuffle(SHUFFLE, initial=SHUFFLE, rng=chance):
        yield images.crop(images.decode(sample["jpg"]).rgb_HWC, CROP_PX, u_y=chance.random(), u_x=chance.random())


def decode(files: list[bytes], seed: int) -> Iterator[Any]:
    from supir_model import images

    chance = random.Random(seed)
    for data in files:
        yield images.crop(images.decode(data).rgb_HWC, CROP_PX, u_y=chance.random(), u_x=chance.random())


def timed(samples: Iterator[Any]) -> tuple[dict[str, float], int]:
    """Seconds in all, of the processor, and to the first; how many samples."""
    begun, begun_cpu, first, found = time.perf_counter(), time.process_time(), 0.0, 0
    for _ in samples:
        found += 1
        first = first or time.perf_counter() - begun
    return {"wall": time.perf_counter() - begun, "cpu": time.process_time() - begun_cpu, "first": first}, found


def rates(taken: dict[str, list[dict[str, float]]], clock: str, count: int) -> dict[str, float]:
    return {name: round(count / median(one[clock] for one in rounds), 1) for name, rounds in taken.items()}


def ratios(taken: dict[str, list[dict[str, float]]], clock: str) -> dict[str, float]:
    """Ours over each other side, medians of the rounds' ratios."""
    pairs = {name: zip(rounds, taken["ours"], strict=True) for name, rounds in taken.items() if name != "ours"}
    return {name: round(median(other[clock] / ours[clock] for other, ours in both), 3) for name, both in pairs.items()}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=Path, default=ROOT / "examples" / "photos")
    parser.add_argument("--cores", type=int, default=1)
    args = parser.parse_args(argv)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    sys.path.insert(0, str(ROOT))
    import cv2
    import pyarrow as pa
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    pa.set_memory_pool(pa.system_memory_pool())  # as training/worker.py
    torch.empty(SETTLED_BYTES, dtype=torch.uint8).fill_(0)
    pictures, count = photographs(args.photos), args.images
    sides: dict[str, Callable[[int], Iterator[Any]]] = {}
    taken: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as url, tempfile.TemporaryDirectory() as tar_folder:
        build(url, pictures, count)
        files = [commented(pictures[i % len(pictures)], i) for i in range(count)]
        sides |= {"decode": lambda seed: decode(files, seed), "ours": lambda seed: ours(url, count, seed)}
        sides |= {"ours_whole": lambda seed: ours(url, count, seed, whole=True), "loader": lambda seed: loader(url, count, seed)}
        if importlib.util.find_spec("webdataset"):
            write_tars(Path(tar_folder), pictures, count)
            sides |= {"webdataset": lambda seed: tars(Path(tar_folder), seed)}
        for seed in range(args.rounds + 1):
            for name, side in sides.items():
                took, found = timed(side(seed))
                assert found == count, f"{name} gave {found} samples, {count} were expected"
                if seed:  # the first round imports and warms up
                    taken.setdefault(name, []).append(took)
            print(f"round {seed} of {args.rounds}", file=sys.stderr, flush=True)
    result: dict[str, object] = {"benchmark": "read", "images": count, "rounds": args.rounds, "cores": args.cores}
    result |= {"cpu": platform.machine(), "torch": torch.__version__}
    result |= {"images_per_s": rates(taken, "wall", count), "ours_to": ratios(taken, "wall")}
    result |= {"images_per_cpu_s": rates(taken, "cpu", count), "ours_to_per_cpu_s": ratios(taken, "cpu")}
    result |= {"first_s": {name: round(median(one["first"] for one in rounds), 3) for name, rounds in taken.items()}}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
