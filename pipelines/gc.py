#!/usr/bin/env python3
"""Remove what must not or need not stay in a dataset: pictures that were taken down, and files that no commit names.

    python pipelines/gc.py --input corpus/ --dry-run
    python pipelines/gc.py --input corpus/ --set 'take_down=["<image_id, source_id or address>"]' --set why="asked for by the author"
    python pipelines/gc.py --input corpus/ --set take_down_list=requests.txt          # one a line; empty lines and # comments do not count
    python pipelines/gc.py --input export/ --set takedowns_of=corpus/

From the moment an id is on the list no job lets it out; this job removes the bytes. Run `curate`, `caption` and `export` again
afterwards: what depends on the shards is done again, and nothing else.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from datetime import timedelta

from infra import gc
from infra.config import RunOptions, run_entry
from infra.dataset import Dataset
from infra.picture_addresses import is_address
from pipelines.export import write_list
from pipelines.recipes.gc import RECIPES, GcConfig
from pipelines.takedown_list import asked as asked_for

MOST_TOLD = 20


def main(argv: list[str]) -> int:
    """The command line."""
    return run_entry(argv, prog="pipelines/gc.py", summary="remove taken-down bytes and uncommitted files", recipes=RECIPES, main=run)


def run(config: GcConfig, options: RunOptions) -> int:
    """Takedowns first, then the sweep."""
    dataset, grace = Dataset(config.input), timedelta(hours=config.grace_h)
    dataset.store.check(write=not options.dry_run)
    if not dataset.tables():
        raise ValueError(f"{dataset.store.url} holds no dataset: expected a folder with commits/; give --input the dataset's address")
    now = asked_for(config.take_down, config.take_down_list)
    asked = now | dataset.takedowns() | (Dataset(config.takedowns_of).takedowns() if config.takedowns_of else frozenset())
    tell_unknown(dataset, now - dataset.takedowns())
    found = gc.take_down(dataset, asked, config.why or "no reason was given", grace=grace, dry_run=options.dry_run)
    for hit in found:
        print(f"gc: {hit.ref.table} shard {hit.ref.shard} (version {hit.ref.version}) held what was taken down: {hit.ref.path}")
    done = "would be" if options.dry_run else "were"
    print(f"gc: {len(asked)} ids asked for, {len(found)} shards {done} rewritten without them", flush=True)
    if not options.dry_run and any(hit.ref.table == "exports" for hit in found) and dataset.has("exports"):
        write_list(dataset, dataset.snapshot("exports"))
    sweep(dataset, grace, options.dry_run)
    return 0


def tell_unknown(dataset: Dataset, asked: frozenset[str]) -> None:
    """Say of what was asked for anew that this dataset has nothing of it: a misspelt id must not look like a success."""
    unknown = asked - gc.known(dataset, asked)
    for one in sorted(unknown)[:MOST_TOLD]:
        what = "came from" if is_address(one) else "has the id"
        print(f"gc: nothing here {what} {one}: it stays on the list, for what may be listed later", flush=True)
    if len(unknown) > MOST_TOLD:
        print(f"gc: and nothing of {len(unknown) - MOST_TOLD} more", flush=True)


def sweep(dataset: Dataset, grace: timedelta, dry_run: bool) -> None:
    """Delete files that no commit names."""
    found = gc.rubbish(dataset, grace)
    for entry in found:
        print(f"gc: {entry.key} ({entry.size_bytes} bytes, {entry.modified:%Y-%m-%d %H:%M} UTC)")
        if not dry_run:
            dataset.store.delete(entry.key)
    total_mb = sum(entry.size_bytes for entry in found) / 1e6
    print(f"gc: {len(found)} files that no commit names, {total_mb:.1f} MB, {'would be' if dry_run else 'were'} deleted", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
