#!/usr/bin/env python3
"""Ingest of original bytes beside img2dataset: one loopback server, the same photographs, equal processes. Prints one JSON line.

    python benchmarks/ingest.py --img2dataset /path/to/its/venv/bin/python --count 4000 --rounds 5

img2dataset needs an environment of its own (its pins are older than ours). Both sides run as whole commands, start included, in turn;
medians of the rounds. Theirs: one process, --threads threads, `disable_all_reencoding`, Parquet output, sha256 (it does not look at the
bytes otherwise, and knows no robots.txt). Ours: one worker, header check, sha256, provenance, checked addresses, robots.txt, a durable
commit per shard. `rate_without_start` leaves out what each side needs for one photograph. `parts` is where our time goes in one shard,
`worker_peak_mib` what the fetching process holds at most with shards of 256 MB.
Without --img2dataset ours alone is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARD_BYTES = 256 * 2**20  # of the usual shard
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
THEIRS = """
import sys
from img2dataset import download
if __name__ == "__main__":
    table, output, threads, rows = sys.argv[1:]
    download(url_list=table, input_format="parquet", url_col="url", output_folder=output, output_format="parquet", processes_count=1,
             thread_count=int(threads), disable_all_reencoding=True, compute_hash="sha256", number_sample_per_shard=int(rows), timeout=30)
"""


def photographs() -> list[bytes]:
    """SUPIR_PHOTOS, or examples/photos."""
    folder = Path(os.environ.get("SUPIR_PHOTOS", ROOT / "examples" / "photos"))
    return [p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES and not p.name.startswith("bad_")]


def serve(pictures: list[bytes], port: Any) -> None:
    """Answer `/<n>.jpg` from memory, with keep-alive, until killed."""
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                name = request.split(b" ", 2)[1]
                close = b"connection: close" in request.lower()
                if name == b"/robots.txt":
                    writer.write(b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n")
                else:
                    body = pictures[int(name[1:].split(b".")[0]) % len(pictures)]
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body))
                    writer.write(body)
                    await writer.drain()
                if close:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 16, backlog=1024)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def table(folder: Path, port: int, count: int) -> Path:
    """A list of so many URLs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"list{count}.parquet"
    pq.write_table(pa.table({"url": [f"http://127.0.0.1:{port}/{i}.jpg" for i in range(count)]}), path)
    return path


def flags(source: Path, output: Path, rows: int) -> list[str]:
    """Our command line."""
    sets = ("web.contact=benchmark", 'web.allow_networks=["127.0.0.1/32"]', "web.host_in_flight=64", "web.host_per_s=0",
            f"shard.rows={rows}", f"expected_bytes={256 * 2**20 // rows}")
    return ["--input", str(source), "--output", str(output), *(part for one in sets for part in ("--set", one))]


def ours(source: Path, output: Path, rows: int) -> float:
    command = [sys.executable, str(ROOT / "pipelines/ingest.py"), *flags(source, output, rows)]
    return timed(command, os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"})


def theirs(python: str, source: Path, output: Path, rows: int, threads: int) -> float:
    script = output.parent / "theirs.py"
    script.write_text(THEIRS)
    return timed([python, str(script), str(source), str(output), str(threads), str(rows)], os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"})


def timed(command: list[str], env: dict[str, str]) -> float:
    env = {name: value for name, value in env.items() if name != "PYTHONDONTWRITEBYTECODE"}  # both sides find what Python compiled
    start = time.monotonic()
    done = subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[1]} ended with {done.returncode}: {done.stderr[-500:]}")
    return time.monotonic() - start


def worker_memory(source: Path, output: Path, rows: int) -> int:
    """MiB resident at most of the process that fetches shards of so many rows; looked at ten times a second."""
    import psutil

    command = [sys.executable, str(ROOT / "pipelines/ingest.py"), *flags(source, output, rows)]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    family = psutil.Process(job.pid)
    most = 0
    while job.poll() is None:
        for one in family.children(recursive=True):
            with suppress(psutil.Error):
                most = max(most, one.memory_info().rss if "ShardActor" in " ".join(one.cmdline()) else 0)
        time.sleep(0.1)
    if job.returncode or not most:
        raise RuntimeError(f"the job watched for its memory ended with {job.returncode}, its worker held {most} bytes")
    return most // 2**20


def check(output: Path, count: int, mine: bool) -> None:
    """Both sides have them all."""
    import pyarrow.parquet as pq

    if mine:
        from infra.dataset import Dataset

        found = Dataset(str(output)).snapshot("images").rows
    else:
        found = sum(pq.read_table(path, columns=["status"])["status"].to_pylist().count("success") for path in output.glob("*.parquet"))
    if found != count:
        raise RuntimeError(f"{output}: {found} of {count} photographs")


def parts(folder: Path, source: Path, rows: int) -> dict[str, float]:
    """Seconds of one shard in this process: what a worker does, by part."""
    from infra import dataset as data
    from infra.digest import content_digest
    from infra.shard_file import RowGroups
    from pipelines import ingest, inputs_table
    from pipelines.recipes.ingest import IngestConfig
    from pipelines.stages.fetch import Fetch
    from pipelines.web.options import WebOptions

    web = WebOptions(contact="benchmark", allow_networks=("127.0.0.1/32",), host_in_flight=64, host_per_s=0.0)
    config = IngestConfig(input=str(source), output=str(folder / "parts"), web=web, shard=inputs_table.ShardLimits(rows=rows),
                          expected_bytes=256 * 2**20 // rows)
    listed = next(ingest.tables(config, data.Dataset(config.output), _listed(config))).rows
    stage = Fetch(max_bytes=config.max_bytes, max_pixels=config.max_pixels, web=web)
    stage.process({"inputs": listed.slice(0, 1)}, {})  # connections, robots.txt, imports
    found = {}
    start = time.monotonic()
    answers = stage._web.fetch_all(listed.column("source_url").to_pylist(), lambda body: body)
    found["download"] = time.monotonic() - start
    start = time.monotonic()
    described = [stage._describe(body) for body in answers if isinstance(body, bytes)]
    found["header_and_sha256"] = time.monotonic() - start
    result = stage.process({"inputs": listed}, {}).table
    del described, answers
    for name, work in (("digest", lambda: content_digest(result, sha256_of={"bytes": "image_id"})),
                       ("encode_hash_write_sync", lambda: data.Dataset(config.output)._write("probe", RowGroups(result)))):
        start = time.monotonic()
        work()
        found[name] = time.monotonic() - start
    total = sum(found.values())
    return {"rows": listed.num_rows, **{name: round(value / total, 3) for name, value in found.items()}, "seconds": round(total, 3)}


def _listed(config: Any) -> Any:
    from pipelines import ingest

    source = ingest.source_of(config)
    list(source.items())
    return source


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img2dataset", default="", metavar="PYTHON", help="the interpreter of an environment that has img2dataset")
    parser.add_argument("--count", type=int, default=4000, help="photographs a round; the folder's are repeated under other URLs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=500, help="photographs a shard, on both sides")
    parser.add_argument("--threads", type=int, default=64, help="img2dataset's threads; ours has as many requests in flight")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    pictures = photographs()
    mean_bytes = sum(map(len, pictures)) // len(pictures)
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    server = context.Process(target=serve, args=(pictures, port), daemon=True)
    server.start()
    folder = Path(tempfile.mkdtemp(prefix="ingest-"))
    seconds: dict[str, list[float]] = {"ours": [], "img2dataset": []}
    starts: dict[str, float] = {}
    try:
        number = port.get()
        sources = {count: table(folder, number, count) for count in (1, args.count)}
        sides = {"ours": ours, **({"img2dataset": None} if args.img2dataset else {})}
        for turn in range(-1, args.rounds + 1):
            for side in sides:
                count = args.count if turn > 0 else 1  # the first two turns: cold, then what a start takes
                output = folder / f"{side}{turn}"
                took = ours(sources[count], output, args.rows) if side == "ours" else \
                    theirs(args.img2dataset, sources[count], output, args.rows, args.threads)
                check(output, count, side == "ours")
                shutil.rmtree(output)
                print(f"{side}: {count} in {took:.1f} s", file=sys.stderr, flush=True)
                if turn > 0:
                    seconds[side].append(took)
                else:
                    starts[side] = took
        shares = parts(folder, sources[args.count], args.rows)
        memory = worker_memory(sources[args.count], folder / "memory", SHARD_BYTES // mean_bytes)
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
    result: dict[str, Any] = {"benchmark": "ingest", "count": args.count, "rounds": args.rounds, "cores": os.cpu_count(),
                              "mean_bytes": mean_bytes, "parts": shares, "worker_peak_mib": memory}
    for side in sides:
        median = statistics.median(seconds[side])
        result[side] = {"seconds": [round(one, 1) for one in seconds[side]], "median_s": round(median, 2),
                        "start_s": round(starts[side], 1),
                        "images_per_s": round(args.count / median, 1),
                        "rate_without_start": round(args.count / max(median - starts[side], 1e-3), 1)}
    if args.img2dataset:
        result["times_img2dataset"] = round(result["img2dataset"]["median_s"] / result["ours"]["median_s"], 2)
        result["times_without_start"] = round(result["ours"]["rate_without_start"] / result["img2dataset"]["rate_without_start"], 2)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
