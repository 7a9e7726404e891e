#!/usr/bin/env python3
"""A list of URLs on its way to shards, before anything is fetched. Prints one JSON line.

    python benchmarks/planning.py [--rows 1000000] [--rounds 5]

One Parquet table with captions, sizes and licences; each round lists it into a new dataset on the local disk, publishes the inputs and
plans what is pending, as `pipelines/ingest.py` does, and then does the same again, when nothing is new. There is no peer: img2dataset
plans nothing, it cuts its list while it downloads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def write_list(path: Path, rows: int) -> None:
    """The table, a piece at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, size = pa.string(), pa.int32()
    schema = pa.schema([("url", text), ("caption", text), ("width", size), ("height", size), ("licence", text)])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, 50_000):
            places = range(first, min(first + 50_000, rows))
            writer.write_table(pa.table([
                [f"https://host{i % 5000}.example/pictures/{i:08d}.jpg" for i in places],
                [f"a photograph of number {i} in a field with some trees, and it is bright" for i in places],
                [1024 + i % 977 for i in places], [1024 + i % 613 for i in places],
                ["CC0-1.0" if i % 3 else "CC-BY-4.0" for i in places]], schema=schema))


def plan(source: Path, output: Path) -> tuple[float, int]:
    """(seconds, pending shards) of listing, publishing and planning."""
    from infra.dataset import Dataset
    from pipelines import ingest
    from pipelines.recipes.ingest import IngestConfig
    from pipelines.runtime.plan import plan_tasks, split_done
    from pipelines.stages.fetch import Fetch
    from pipelines.web.options import WebOptions

    config = IngestConfig(input=str(source), output=str(output), web=WebOptions(contact="benchmark"))
    dataset, stage = Dataset(config.output), Fetch(max_bytes=config.max_bytes, max_pixels=config.max_pixels, web=config.web)
    start = time.monotonic()
    ingest.list_inputs(config, dataset, stage)
    _, pending = split_done(dataset, stage, plan_tasks(stage, {"inputs": dataset.snapshot("inputs")}))
    return time.monotonic() - start, len(pending)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    first, again, shards, cpu_s = [], [], 0, []
    with tempfile.TemporaryDirectory(prefix="planning-") as folder:
        source = Path(folder, "list.parquet")
        write_list(source, args.rows)
        for turn in range(args.rounds):
            used = time.process_time()
            took, shards = plan(source, Path(folder, str(turn)))
            first.append(took)
            cpu_s.append(time.process_time() - used)
            again.append(plan(source, Path(folder, str(turn)))[0])
    print(json.dumps({
        "benchmark": "planning", "rows": args.rows, "shards": shards, "machine": platform.machine(), "cores": os.cpu_count(),
        "first_s": [round(s, 2) for s in first], "median_s": round(median(first), 2), "cpu_s": round(median(cpu_s), 2),
        "again_s": round(median(again), 2), "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
